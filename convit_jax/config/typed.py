"""Configurations as trees of frozen dataclasses, of any keys: types, ranges, text, differences.

`config/keys.py` declares the keys of this package.
"""

import ast
import dataclasses
import difflib
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeGuard, TypeVar

import ml_collections
from ml_collections import config_dict

from convit_jax.errors import InputError
from convit_jax.values.ranges import Range, When

Section = TypeVar("Section")

_BOOLEANS = dict.fromkeys(("true", "t", "yes", "1"), True)
_BOOLEANS |= dict.fromkeys(("false", "f", "no", "0"), False)


def key(
    default: Any, meaning: str, *, fixed: bool = False, read_if: Sequence[When] = (), **bounds: Any
) -> Any:
    """Declare a key of a section.

    Args:
        default: its default value.
        meaning: for `--help`.
        fixed: whether it must not change between the start of a run and its resumption.
        read_if: conditions under which it is read; it may be set only if all of them hold.
        **bounds: its allowed values, the arguments of `Range`.
    """
    metadata = {"help": meaning, "fixed": fixed, "range": Range(**bounds), "read_if": read_if}
    return dataclasses.field(default=default, metadata=metadata)


def fixed_key(default: Any, meaning: str, **options: Any) -> Any:
    """Declare a key that must not change between the start of a run and its resumption."""
    return key(default, meaning, fixed=True, **options)


def keys(section: type, path: str = "") -> dict[str, dataclasses.Field]:
    """Return every key by its dotted name, in order, with its type, default and meaning."""
    fields: dict[str, dataclasses.Field] = {}
    for field in dataclasses.fields(section):
        if _is_section(field.type):
            fields |= keys(field.type, f"{path}{field.name}.")
        else:
            fields[path + field.name] = field
    return fields


def _is_section(kind: Any) -> TypeGuard[type]:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def get(config: Any, name: str) -> Any:
    """Return the value of a dotted key."""
    for part in name.split("."):
        config = getattr(config, part)
    return config


def differences(old: Section, new: Section) -> Iterator[tuple[str, Any, Any, bool]]:
    """Yield (key, old value, new value, whether it is fixed) for every key that differs."""
    for name, field in keys(type(new)).items():
        before, after = get(old, name), get(new, name)
        if before != after:
            yield name, before, after, field.metadata["fixed"]


def unknown_key(root: type, name: str) -> str:
    """Return the message for a name that is not a key, with the nearest key."""
    inside = [key for key in keys(root) if key.startswith(f"{name}.")]
    if inside:
        return f"config.{name} is a section: set a key inside it, such as {inside[0]}"
    # A key in the wrong section is recognised by its last part.
    names = {key.rpartition(".")[2]: key for key in keys(root)}
    names |= {field.name: field.name for field in dataclasses.fields(root)}
    close = difflib.get_close_matches(name.rpartition(".")[2], names, n=1)
    hint = f"did you mean '{names[close[0]]}'?" if close else "train.py --help lists them"
    return f"no config key '{name}': {hint}"


def as_config_dict(section: Any) -> ml_collections.ConfigDict:
    """Return the tree as a locked `ConfigDict`: unknown keys and wrong types are errors."""
    values = ml_collections.ConfigDict()
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            value = as_config_dict(value)
        elif value is None:
            value = config_dict.placeholder(_accepted_types(field.type)[0])
        values[field.name] = value
    return values.lock()


def from_mapping(
    root: type[Section], values: Mapping[str, Any], unknown: list[str] | None = None
) -> Section:
    """Return the tree that a nested mapping or ConfigDict describes; missing keys are default.

    Args:
        root: the class of the tree.
        values: values by name, nested as the tree is.
        unknown: the names that are not keys are added to it; None if they are errors.

    Raises:
        InputError: an unknown key, or a value of a wrong type.
    """

    def make(section: type, values: Mapping[str, Any], path: str) -> Any:
        types_by_name = {field.name: field.type for field in dataclasses.fields(section)}
        arguments = {}
        for name, value in values.items():
            full_name = path + name
            if name not in types_by_name:
                if unknown is None:
                    raise InputError(unknown_key(root, full_name))
                unknown.append(full_name)
                continue
            kind = types_by_name[name]
            if not _is_section(kind):
                arguments[name] = typed_value(value, kind, f"config.{full_name}")
            elif isinstance(value, Mapping | ml_collections.ConfigDict):
                arguments[name] = make(kind, value, full_name + ".")
            else:
                raise InputError(f"config.{full_name} is a section: set a key inside it")
        return section(**arguments)

    return make(root, values, "")


def _accepted_types(kind: Any) -> list[type]:
    """Return the plain types of an annotation: `float | None` → [float, NoneType]."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else [kind]
    return [typing.get_origin(option) or option for option in options]


def _in_words(accepted: Sequence[type]) -> str:
    return " or ".join(kind.__name__ for kind in accepted if kind is not types.NoneType)


def typed_value(value: Any, kind: Any, name: str) -> Any:
    """Return a value of a type, which JSON may have as a list or a whole number.

    Args:
        value: the value.
        kind: its type, of a key.
        name: of the value, for messages.

    Raises:
        InputError: it is of another type.
    """
    accepted = _accepted_types(kind)
    if isinstance(value, list) and tuple in accepted:
        value = tuple(value)  # JSON has no tuples
    if float in accepted and type(value) is int:
        value = float(value)
    # bool is a subclass of int, but True is not a number of layers.
    if type(value) not in accepted:
        raise InputError(f"{name}={value!r:.80}: expected {_in_words(accepted)}")
    if type(value) is tuple:
        element = typing.get_args(kind)[0]
        value = tuple(typed_value(item, element, name) for item in value)
    return value


def check_ranges(config: Any) -> None:
    """Raise InputError for the first value outside its key's range."""
    for name, field in keys(type(config)).items():
        field.metadata["range"].check(get(config, name), f"config.{name}")


def check_read(config: Any, undecided: Collection[str] = ()) -> None:
    """Check that every key with another value than its default will be read.

    Args:
        config: the whole configuration.
        undecided: keys that will be set later; conditions on them are assumed to hold.

    Raises:
        InputError: a key would not be read.
    """
    for name, field in keys(type(config)).items():
        value = get(config, name)
        if value == field.default:
            continue
        for condition in field.metadata["read_if"]:
            others, allowed = condition.keys, condition.within
            if any(key in undecided or allowed.holds(get(config, key)) for key in others):
                continue
            reason = " and ".join(f"config.{key} is {get(config, key)!r}" for key in others)
            raise InputError(
                f"config.{name}={value!r} would not be read, as {reason}: leave it at "
                f"{field.default!r}, or set {' or '.join(others)} to {allowed}"
            )


def from_text(text: str, kind: Any, name: str) -> Any:
    """Parse a value given as text on a command line.

    A tuple may be written as in Python or as its elements separated by commas; commas inside
    brackets, as in regular expressions, belong to an element.

    Args:
        text: the value.
        kind: the key's type.
        name: the key's name, for messages.

    Raises:
        InputError: it is a value of another type.
    """
    accepted = _accepted_types(kind)
    if types.NoneType in accepted and text == "None":
        return None
    if str in accepted:
        return text
    value = _BOOLEANS.get(text.lower()) if bool in accepted else _literal(text)
    if tuple in accepted and not isinstance(value, tuple | list):
        element = typing.get_args(kind)[0]
        parts = [value] if isinstance(value, str) else _split(text)
        value = tuple(from_text(part, element, name) for part in parts)
    if value is None:
        raise InputError(f"{name}={text}: expected {_in_words(accepted)}")
    return typed_value(value, kind, name)


def _literal(text: str) -> Any:
    """Evaluate a Python literal, such as a number or tuple; None if it is not one."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _split(text: str) -> list[str]:
    """Split a text at the commas outside brackets."""
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth <= 0:
            parts.append(text[start:position])
            start = position + 1
    return [part.strip() for part in (*parts, text[start:]) if part.strip()]
