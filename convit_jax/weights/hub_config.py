"""The `config.json` that timm's repositories have beside the weights."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from convit_jax.errors import InputError, boundary
from convit_jax.weights.card import Card

FILE_NAME = "config.json"
# Of the older form, in which everything stands at the top, one of these is there.
_OF_PREPROCESSING = ("mean", "std", "crop_pct", "input_size")


@dataclasses.dataclass(frozen=True)
class HubConfig:
    """What a `config.json` of timm's says.

    Attributes:
        card: the classes' names and the preprocessing.
        num_classes: how many classes it speaks of, or None.
        image_size: (height, width), or None.
        notes: what it asks for that is not done, a sentence each.
    """

    card: Card = Card()  # noqa: RUF009  (frozen)
    num_classes: int | None = None
    image_size: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()


def read_beside(weights: epath.Path) -> HubConfig:
    """What the `config.json` beside a weights file says; nothing, if it is none of timm's.

    Raises:
        InputError: it is damaged, or contradicts itself.
        MachineError: it cannot be read for want of permission or such.
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
    if inner is values and not ("architecture" in values and set(_OF_PREPROCESSING) & set(values)):
        return HubConfig()  # a run's, or another library's
    said = {**inner, **{name: value for name, value in values.items() if value is not None}}
    num_classes = said.get("num_classes")
    if num_classes is not None and not _is_count(num_classes):
        raise InputError(f"num_classes is {num_classes!r:.80}, expected a whole number above 0")
    names, about_names = _class_names(said.get("label_names", said.get("labels")), num_classes)
    image_size = _image_size(inner.get("input_size"))
    card = Card(
        None,
        names,
        inner.get("crop_pct"),
        _numbers(inner.get("mean"), "mean"),
        _numbers(inner.get("std"), "std"),
    )
    return HubConfig(card, num_classes, image_size, (*_not_done(inner), *about_names))


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _numbers(value: Any, field: str) -> tuple[Any, ...] | None:
    """A number for each channel, or one for all."""
    if value is None:
        return None
    if isinstance(value, int | float):
        return (value,)
    if not isinstance(value, list):
        raise InputError(f"{field} is {value!r:.80}, expected a number for each channel")
    return tuple(value)


def _image_size(value: Any) -> tuple[int, int] | None:
    """(height, width) of `input_size`, [channels, height, width]."""
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 3 or not all(map(_is_count, value)):
        raise InputError(f"input_size is {value!r:.80}, expected [channels, height, width]")
    return value[1], value[2]


def _class_names(
    value: Any, num_classes: int | None
) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """The classes' names, if each has its own, and what is to be said of them."""
    if value is None:
        return None, ()
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        return None, ("the class names in config.json are no list of names: they are not taken",)
    if num_classes is not None and len(value) != num_classes:
        raise InputError(
            f"it names {len(value):,} classes, and says that there are {num_classes:,}"
        )
    if len(set(value)) < len(value):
        return None, ("config.json has a class name twice: the names are not taken",)
    return tuple(value) or None, ()


def _not_done(inner: Mapping[str, Any]) -> list[str]:
    notes = []
    if inner.get("interpolation") not in (None, "bicubic"):
        notes.append(
            f"config.json asks for {inner['interpolation']!r:.40} interpolation: images are scaled "
            "by a bicubic filter"
        )
    if inner.get("crop_mode") not in (None, "center"):
        notes.append(
            f"config.json asks for the crop mode {inner['crop_mode']!r:.40}: the centre is cut out"
        )
    return notes
