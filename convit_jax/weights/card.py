"""The card: metadata that weights carry besides their tensors."""

import collections
import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

from convit_jax.config import Config
from convit_jax.config.typed import typed_value
from convit_jax.data.images.preprocessing import Preprocessing
from convit_jax.data.sources import imagenet
from convit_jax.errors import InputError, boundary, nearest
from convit_jax.models import Architecture

_DEFAULT = Preprocessing()


@dataclasses.dataclass(frozen=True)
class Card:
    """What the tensors do not show; stored in this package's checkpoints and .safetensors files.

    A field that is None is unknown.

    Attributes:
        architecture: of the model.
        class_names: the class name of each logit, all different.
        crop_fraction, mean, std: preprocessing for evaluation.

    Raises:
        InputError: a value has the wrong type or is out of range.
    """

    architecture: Architecture | None = None
    class_names: tuple[str, ...] | None = None
    crop_fraction: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        architecture, names, crop = self.architecture, self.class_names, self.crop_fraction
        is_known = architecture is None or isinstance(architecture, Architecture)
        _require(is_known, "architecture", architecture, "an object")
        if names is not None:
            are_strings = isinstance(names, tuple) and all(isinstance(name, str) for name in names)
            _require(are_strings and names != (), "class_names", names, "a name for each class")
            repeated = [name for name, n in collections.Counter(names).items() if n > 1]
            expected = f"different names, but {repeated[:3]} occur more than once"
            _require(not repeated, "class_names", names, expected)
        if names is not None and architecture is not None:
            expected = f"{architecture.num_classes}, one for each class"
            fits = len(names) == architecture.num_classes
            _require(fits, "class_names", f"{len(names)} names", expected)
        if crop is not None:
            _require(_is_number(crop) and 0 < crop <= 1, "crop_fraction", crop, "above 0, up to 1")
        for field, values in (("mean", self.mean), ("std", self.std)):
            are_numbers = isinstance(values, tuple) and all(map(_is_number, values))
            valid = values is None or (are_numbers and values != ())
            _require(valid, field, values, "a number for each channel")
        lengths = [None if values is None else len(values) for values in (self.mean, self.std)]
        _require(lengths[0] == lengths[1], "std", self.std, "as many numbers as mean has")
        _require(self.std is None or min(self.std) > 0, "std", self.std, "numbers above 0")

    @classmethod
    def of_run(
        cls, config: Config, architecture: Architecture, class_names: tuple[str, ...]
    ) -> "Card":
        """Return the card of a run's checkpoints."""
        d = config.data
        return cls(architecture, class_names, d.eval_crop, d.mean, d.std)

    def names_for(self, num_classes: int) -> tuple[str, ...] | None:
        """Return the class names; a thousand classes without names are taken to be ImageNet's."""
        if self.class_names is None and num_classes == len(imagenet.class_ids()):
            return imagenet.class_ids()
        return self.class_names

    def assumptions(self) -> str:
        """Describe what `preprocessing` assumes because the card lacks it; "" if nothing."""
        parts = []
        if self.mean is None:
            parts.append("ImageNet's mean and standard deviation")
        if self.crop_fraction is None:
            parts.append(f"a centre crop of {_DEFAULT.crop_fraction}")
        return " and ".join(parts)

    def preprocessing(self, architecture: Architecture) -> Preprocessing:
        """Return how images become the model's input; unknown values are the released models'.

        Raises:
            InputError: the mean is unknown and the images do not have ImageNet's three channels.
        """
        mean, std = self.mean or imagenet.MEAN, self.std or imagenet.STD
        if len(mean) == 1:  # one number for all channels
            mean, std = mean * architecture.in_channels, std * architecture.in_channels
        if len(mean) != architecture.in_channels:
            raise InputError(
                f"the weights take images of {architecture.in_channels} channels, and their "
                "normalisation is unknown: use the checkpoint, or the .safetensors file that "
                "convit_jax.convert writes from it, which contain it"
            )
        crop = self.crop_fraction or _DEFAULT.crop_fraction
        return Preprocessing(architecture.image_size, crop, mean, std)

    def as_json(self) -> dict[str, Any]:
        """Return the card as JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> "Card":
        """Return the card that `as_json` was called on.

        Raises:
            InputError: the values are not a card's, or were written by a later version.
        """
        checked = _checked_fields(cls, values, "")
        fields = {name: _as_tuple(value) for name, value in checked.items()}
        if fields.get("architecture") is not None:
            fields["architecture"] = _architecture(fields["architecture"])
        with boundary("its card", "cannot be read"):
            return cls(**fields)


def _architecture(values: Any) -> Architecture:
    """Return the architecture with these JSON values, after checking their types."""
    kinds = {field.name: field.type for field in dataclasses.fields(Architecture)}
    checked = _checked_fields(Architecture, values, "architecture.")
    problem = "cannot be read: architecture"
    with boundary("its card", problem):
        return Architecture(
            **{k: typed_value(v, kinds[k], f"its card {problem}.{k}") for k, v in checked.items()}
        )


def _checked_fields(record: type, values: Any, path: str) -> Mapping[str, Any]:
    """Return the values after checking that they are a record's; a later version may have more."""
    _require(isinstance(values, Mapping), path.rstrip(".") or "all of it", values, "an object")
    names = [field.name for field in dataclasses.fields(record)]
    for name in values:
        if name not in names:
            hint = nearest(str(name), names)
            raise InputError(f"its card cannot be read: unknown field '{path}{name}'; {hint}")
    return values


def _require(condition: bool, field: str, value: Any, expected: str) -> None:
    if not condition:
        text = repr(value)
        text = text if len(text) <= 80 else f"{text[:80]}…"
        raise InputError(f"its card cannot be read: {field} is {text}, expected {expected}")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -sys.maxsize < value < sys.maxsize


def _as_tuple(value: Any) -> Any:
    """Return a list as a tuple, which JSON lacks, and other values unchanged."""
    return tuple(value) if isinstance(value, list) else value
