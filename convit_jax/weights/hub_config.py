"""The `config.json` beside the weights in timm's repositories."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from convit_jax import models
from convit_jax.errors import InputError, boundary
from convit_jax.weights.card import Card

FILE_NAME = "config.json"
# The older format has no `pretrained_cfg`, but at least one of these at the top level.
_PREPROCESSING_FIELDS = ("mean", "std", "crop_pct", "input_size")


@dataclasses.dataclass(frozen=True)
class HubConfig:
    """The content of a timm `config.json`.

    Attributes:
        card: class names and preprocessing.
        num_classes: number of classes, or None.
        image_size: (height, width), or None.
        architecture: timm's name of the model, or None.
        model_args: arguments of timm's model that differ from the named one's.
        notes: settings that are not supported, one sentence each.
    """

    card: Card = Card()  # noqa: RUF009  (frozen)
    num_classes: int | None = None
    image_size: tuple[int, int] | None = None
    architecture: str | None = None
    model_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def num_heads(self, width: int) -> int | None:
        """Return the heads per layer of a model of this width, if the file determines them."""
        heads = self.model_args.get("num_heads")
        if _is_positive_int(heads):
            return heads
        ours = {theirs: ours for ours, theirs in models.TIMM_NAMES.items()}
        if self.architecture not in ours:
            return None
        named = models.architecture(ours[self.architecture])
        return named.num_heads if named.width == width else None


def read_beside(weights: epath.Path) -> HubConfig:
    """Read the `config.json` beside a weights file; an empty one if there is none from timm.

    Raises:
        InputError: it is damaged, or contradicts itself.
        MachineError: the machine cannot read it (permission, storage).
    """
    path = weights.parent / FILE_NAME
    with boundary(str(path)):
        if not path.is_file():
            return HubConfig()
        values = json.loads(path.read_text())
        try:
            return _parse(values)
        except InputError as error:
            raise InputError(f"{path}: {str(error).replace('its card', 'it')}") from error


def _parse(values: Any) -> HubConfig:
    if not isinstance(values, Mapping):
        raise InputError(f"it holds a {type(values).__name__}, expected an object")
    inner = values.get("pretrained_cfg", values)
    if not isinstance(inner, Mapping):
        raise InputError(f"pretrained_cfg is {inner!r:.80}, expected an object")
    if inner is values and not (
        "architecture" in values and set(_PREPROCESSING_FIELDS) & set(values)
    ):
        return HubConfig()  # from a training run, or another library
    settings = {**inner, **{name: value for name, value in values.items() if value is not None}}
    num_classes = settings.get("num_classes")
    if num_classes is not None and not _is_positive_int(num_classes):
        raise InputError(f"num_classes is {num_classes!r:.80}, expected a whole number above 0")
    names, name_notes = _class_names(
        settings.get("label_names", settings.get("labels")), num_classes
    )
    image_size = _image_size(inner.get("input_size"))
    card = Card(
        None,
        names,
        inner.get("crop_pct"),
        _numbers(inner.get("mean"), "mean"),
        _numbers(inner.get("std"), "std"),
    )
    architecture, model_args = values.get("architecture"), values.get("model_args")
    return HubConfig(
        card,
        num_classes,
        image_size,
        architecture if isinstance(architecture, str) else None,
        model_args if isinstance(model_args, Mapping) else {},
        (*_unsupported_settings(inner), *name_notes),
    )


def _is_positive_int(value: Any) -> bool:
    return type(value) is int and value >= 1


def _numbers(value: Any, field: str) -> tuple[Any, ...] | None:
    """Return the numbers, one per channel or one for all."""
    if value is None:
        return None
    if isinstance(value, int | float):
        return (value,)
    if not isinstance(value, list):
        raise InputError(f"{field} is {value!r:.80}, expected a number for each channel")
    return tuple(value)


def _image_size(value: Any) -> tuple[int, int] | None:
    """Return (height, width) of `input_size`, which is [channels, height, width]."""
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 3 or not all(map(_is_positive_int, value)):
        raise InputError(f"input_size is {value!r:.80}, expected [channels, height, width]")
    return value[1], value[2]


def _class_names(
    value: Any, num_classes: int | None
) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """Return the class names if they are valid and different, and notes about them."""
    if value is None:
        return None, ()
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        return None, ("the class names in config.json are not a list of strings: ignored",)
    if num_classes is not None and len(value) != num_classes:
        raise InputError(f"it names {len(value):,} classes, but num_classes is {num_classes:,}")
    if len(set(value)) < len(value):
        return None, ("config.json has duplicate class names: ignored",)
    return tuple(value) or None, ()


def _unsupported_settings(inner: Mapping[str, Any]) -> list[str]:
    notes = []
    if inner.get("interpolation") not in (None, "bicubic"):
        notes.append(
            f"config.json asks for {inner['interpolation']!r:.40} interpolation: a bicubic filter "
            "is used instead"
        )
    if inner.get("crop_mode") not in (None, "center"):
        notes.append(
            f"config.json asks for the crop mode {inner['crop_mode']!r:.40}: the centre is cropped "
            "instead"
        )
    return notes
