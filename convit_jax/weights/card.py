"""What weights say of themselves besides their tensors."""

import collections
import dataclasses
import sys
import typing
from collections.abc import Mapping
from typing import Any

from convit_jax.config import Config
from convit_jax.data.images.preprocessing import Preprocessing
from convit_jax.data.sources import imagenet
from convit_jax.errors import InputError, boundary, nearest
from convit_jax.models import Architecture

_ASSUMED = Preprocessing()


@dataclasses.dataclass(frozen=True)
class Card:
    """What tensors do not tell; it travels with checkpoints and .safetensors files of ours.

    Whatever is None, nobody said.

    Attributes:
        architecture: of the model.
        class_names: the name of each logit's class, each of its own.
        crop_fraction, mean, std: the preprocessing of evaluation.

    Raises:
        InputError: a value has another type or is out of its range.
    """

    architecture: Architecture | None = None
    class_names: tuple[str, ...] | None = None
    crop_fraction: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        architecture, names, crop = self.architecture, self.class_names, self.crop_fraction
        if architecture is not None:
            _expect(
                isinstance(architecture, Architecture), "architecture", architecture, "an object"
            )
        if names is not None:
            texts = isinstance(names, tuple) and all(isinstance(name, str) for name in names)
            _expect(texts and names != (), "class_names", names, "a name for each class")
            twice = [name for name, n in collections.Counter(names).items() if n > 1]
            _expect(not twice, "class_names", names, f"each once, and {twice[:3]} are there twice")
        if names is not None and architecture is not None:
            expected = f"{architecture.num_classes}, one for each class"
            fits = len(names) == architecture.num_classes
            _expect(fits, "class_names", f"{len(names)} names", expected)
        if crop is not None:
            _expect(_is_number(crop) and 0 < crop <= 1, "crop_fraction", crop, "above 0, up to 1")
        for field, values in (("mean", self.mean), ("std", self.std)):
            numbers = isinstance(values, tuple) and values != () and all(map(_is_number, values))
            _expect(values is None or numbers, field, values, "a number for each channel")
        channels = [None if values is None else len(values) for values in (self.mean, self.std)]
        _expect(channels[0] == channels[1], "std", self.std, "a number for each of mean's")
        _expect(self.std is None or min(self.std) > 0, "std", self.std, "numbers above 0")

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

    def assumed(self) -> str:
        """What `preprocessing` assumes because nobody said it, in words; "" if nothing."""
        parts = []
        if self.mean is None:
            parts.append("ImageNet's mean and standard deviation")
        if self.crop_fraction is None:
            parts.append(f"a centre crop of {_ASSUMED.crop_fraction}")
        return " and ".join(parts)

    def preprocessing(self, architecture: Architecture) -> Preprocessing:
        """How images become the model's input; the released models' way where nobody said.

        Raises:
            InputError: it is not known for images of so many channels.
        """
        mean, std = self.mean or imagenet.MEAN, self.std or imagenet.STD
        if len(mean) == 1:  # one number for all channels
            mean, std = mean * architecture.in_channels, std * architecture.in_channels
        if len(mean) != architecture.in_channels:
            raise InputError(
                f"the weights take images of {architecture.in_channels} channels and do not say "
                "how they were normalised: take the checkpoint, or the .safetensors file that "
                "convit_jax.convert makes of it, which do"
            )
        crop = self.crop_fraction or _ASSUMED.crop_fraction
        return Preprocessing(architecture.image_size, crop, mean, std)

    def as_json(self) -> dict[str, Any]:
        """The card in JSON's types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> "Card":
        """The inverse of `as_json`.

        Raises:
            InputError: it is no such card, or was written by a later version.
        """
        fields = {name: _tuples(value) for name, value in _known(cls, values, "").items()}
        if fields.get("architecture") is not None:
            fields["architecture"] = _architecture(fields["architecture"])
        with boundary("its card", "cannot be read"):
            return cls(**fields)


def _architecture(values: Any) -> Architecture:
    """An architecture of JSON's values, each of the field's type."""
    kinds = {field.name: field.type for field in dataclasses.fields(Architecture)}
    fields = {}
    for name, value in _known(Architecture, values, "architecture.").items():
        value, kind = _tuples(value), kinds[name]
        if kind is float and type(value) is int:
            value = float(value)
        part = (typing.get_args(kind) or (kind,))[0]  # of image_size, which has two
        parts = value if isinstance(value, tuple) else (value,)
        fits = isinstance(value, tuple) == (part is not kind)
        fits = fits and all(type(item) is part for item in parts)
        _expect(fits, f"architecture.{name}", value, getattr(kind, "__name__", str(kind)))
        fields[name] = value
    with boundary("its card", "cannot be read: architecture"):
        return Architecture(**fields)


def _known(record: type, values: Any, path: str) -> Mapping[str, Any]:
    """The values of a record's fields, of which a later version may have more."""
    _expect(isinstance(values, Mapping), path.rstrip(".") or "all of it", values, "an object")
    names = [field.name for field in dataclasses.fields(record)]
    for name in values:
        if name not in names:
            hint = nearest(str(name), names)
            raise InputError(f"its card cannot be read: no field '{path}{name}' is known; {hint}")
    return values


def _expect(holds: bool, field: str, value: Any, expected: str) -> None:
    if not holds:
        text = repr(value)
        shown = text if len(text) <= 80 else f"{text[:80]}…"
        raise InputError(f"its card cannot be read: {field} is {shown}, expected {expected}")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -sys.maxsize < value < sys.maxsize


def _tuples(value: Any) -> Any:
    """JSON has no tuples."""
    return tuple(value) if isinstance(value, list) else value
