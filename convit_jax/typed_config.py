"""A tree of frozen dataclasses as a configuration: its keys, types and meanings.

`config.py` says which keys there are; here is what can be done with any such tree.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import ml_collections
from ml_collections import config_dict

from convit_jax.errors import InputError

Section = TypeVar("Section")


def key(default: Any, meaning: str, *, fixed: bool = False) -> Any:
    """A key. A `fixed` one cannot change between the start of a run and its resumption."""
    return dataclasses.field(default=default, metadata={"help": meaning, "fixed": fixed})


def keys(section: type, path: str = "") -> dict[str, dataclasses.Field]:
    """Every key by its dotted name, in order, with its type, default and meaning."""
    found: dict[str, dataclasses.Field] = {}
    for field in dataclasses.fields(section):
        if dataclasses.is_dataclass(field.type):
            found |= keys(field.type, f"{path}{field.name}.")
        else:
            found[path + field.name] = field
    return found


def get(config: Any, name: str) -> Any:
    """The value of a dotted key."""
    for part in name.split("."):
        config = getattr(config, part)
    return config


def differences(old: Section, new: Section) -> Iterator[tuple[str, Any, Any, bool]]:
    """(key, old value, new value, whether it is fixed) of every key whose values differ."""
    for name, field in keys(type(new)).items():
        before, after = get(old, name), get(new, name)
        if before != after:
            yield name, before, after, field.metadata["fixed"]


def unknown_key(root: type, name: str) -> str:
    """The message for a key that does not exist, naming the nearest that does."""
    # A key that was looked for in the wrong section is found by its last part.
    names = {key.rpartition(".")[2]: key for key in keys(root)}
    names |= {field.name: field.name for field in dataclasses.fields(root)}
    close = difflib.get_close_matches(name.rpartition(".")[2], names, n=1)
    hint = f"did you mean '{names[close[0]]}'?" if close else "train.py --help lists them"
    return f"no config key '{name}': {hint}"


def as_config_dict(section: Any) -> ml_collections.ConfigDict:
    """The tree as a locked `ConfigDict`, in which unknown keys and wrong types are errors."""
    values = ml_collections.ConfigDict()
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            value = as_config_dict(value)
        elif value is None:
            value = config_dict.placeholder(_accepted_types(field.type)[0])
        values[field.name] = value
    return values.lock()


def from_mapping(root: type[Section], values: Mapping[str, Any]) -> Section:
    """The tree that a nested mapping or ConfigDict describes; what it leaves out is default.

    Raises:
        InputError: an unknown key, or a value of a wrong type.
    """
    return _section(root, root, values, "")


def _section(root: type, section: type, values: Mapping[str, Any], path: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(section)}
    made = {}
    for name, value in values.items():
        full_name = path + name
        if name not in fields:
            raise InputError(unknown_key(root, full_name))
        kind = fields[name].type
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, Mapping | ml_collections.ConfigDict):
                raise InputError(f"config.{full_name} is a section: set a key inside it")
            made[name] = _section(root, kind, value, full_name + ".")
        else:
            made[name] = _typed(value, kind, full_name)
    return section(**made)


def _accepted_types(kind: Any) -> list[type]:
    """The plain types of an annotation: `float | None` → [float, NoneType]."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else [kind]
    return [typing.get_origin(option) or option for option in options]


def _typed(value: Any, kind: Any, name: str) -> Any:
    accepted = _accepted_types(kind)
    if isinstance(value, list) and tuple in accepted:
        value = tuple(value)  # JSON has no tuples
    if float in accepted and type(value) is int:
        value = float(value)
    # bool is a subclass of int, but True is no number of layers.
    if type(value) not in accepted:
        wanted = " or ".join(t.__name__ for t in accepted if t is not types.NoneType)
        raise InputError(f"config.{name}={value!r}: expected {wanted}")
    if type(value) is tuple:
        element = typing.get_args(kind)[0]
        value = tuple(_typed(item, element, name) for item in value)
    return value
