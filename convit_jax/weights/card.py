"""What weights say of themselves besides their tensors."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from convit_jax.config import Config
from convit_jax.data import imagenet
from convit_jax.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from convit_jax.errors import InputError
from convit_jax.models import Architecture


@dataclasses.dataclass(frozen=True)
class Card:
    """What tensors do not tell; it travels with checkpoints and .safetensors files of ours.

    Attributes:
        architecture: of the model, or None where the tensors are all there is.
        class_names: the name of each logit's class, or None where nobody said.
        crop_fraction, mean, std: the preprocessing of evaluation; the released models' unless
            said otherwise.
    """

    architecture: Architecture | None = None
    class_names: tuple[str, ...] | None = None
    crop_fraction: float = 0.875
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    @classmethod
    def of_run(
        cls, config: Config, architecture: Architecture, class_names: tuple[str, ...]
    ) -> "Card":
        """The card of a run's checkpoints."""
        d = config.data
        return cls(architecture, class_names, d.eval_crop, d.mean, d.std)

    def names_for(self, num_classes: int) -> tuple[str, ...] | None:
        """The classes' names; a thousand classes that nobody named are ImageNet's."""
        if self.class_names is None and num_classes == len(imagenet.class_ids()):
            return imagenet.class_ids()
        return self.class_names

    def preprocessing(self, architecture: Architecture) -> Preprocessing:
        """How images become the model's input.

        Raises:
            InputError: it is not known for images of so many channels.
        """
        if len(self.mean) != architecture.in_channels:
            raise InputError(
                f"the weights take images of {architecture.in_channels} channels and do not say "
                "how they were normalised: take the checkpoint, or the .safetensors file that "
                "convit_jax.convert makes of it, which do"
            )
        return Preprocessing(architecture.image_size, self.crop_fraction, self.mean, self.std)

    def as_json(self) -> dict[str, Any]:
        """The card in JSON's types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Card":
        """The inverse of `as_json`.

        Raises:
            InputError: it is no such card, or was written by a later version.
        """
        try:
            fields = {name: _tuples(value) for name, value in values.items()}
            if fields.get("architecture") is not None:
                made = {name: _tuples(value) for name, value in fields["architecture"].items()}
                fields["architecture"] = Architecture(**made)
            return cls(**fields)
        except (TypeError, AttributeError) as error:
            raise InputError(f"its card cannot be read: {error}") from error


def _tuples(value: Any) -> Any:
    """JSON has no tuples."""
    return tuple(value) if isinstance(value, list) else value
