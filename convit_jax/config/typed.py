"""A tree of frozen dataclasses as a configuration: its keys, types, ranges and meanings.

`config.py` says which keys there are; here is what can be done with any such tree.
"""

import ast
import dataclasses
import difflib
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import ml_collections
from ml_collections import config_dict

from convit_jax.errors import InputError
from convit_jax.values.ranges import Range, When

Section = TypeVar("Section")

_TRUTHS = dict.fromkeys(("true", "t", "yes", "1"), True)
_TRUTHS |= dict.fromkeys(("false", "f", "no", "0"), False)


def key(
    default: Any, meaning: str, *, fixed: bool = False, read_if: Sequence[When] = (), **bounds: Any
) -> Any:
    """A key of a section.

    Args:
        default: its value where nothing else is said.
        meaning: for `--help`.
        fixed: it cannot change between the start of a run and its resumption.
        read_if: conditions under which it is read; it may be set only where all of them hold.
        **bounds: what its value may be: the arguments of `Range`.
    """
    metadata = {"help": meaning, "fixed": fixed, "range": Range(**bounds), "read_if": read_if}
    return dataclasses.field(default=default, metadata=metadata)


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
    """The message for a name that is no key, naming the nearest that is."""
    inside = [key for key in keys(root) if key.startswith(f"{name}.")]
    if inside:
        return f"config.{name} is a section: set a key inside it, such as {inside[0]}"
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


def without_unknown(
    section: type, values: Mapping[str, Any], path: str = ""
) -> tuple[dict[str, Any], list[str]]:
    """The part of a nested mapping that is made of keys, and the names of the rest."""
    fields = {field.name: field.type for field in dataclasses.fields(section)}
    known, unknown = {}, []
    for name, value in values.items():
        if name not in fields:
            unknown.append(path + name)
            continue
        if dataclasses.is_dataclass(fields[name]) and isinstance(value, Mapping):
            value, more = without_unknown(fields[name], value, f"{path}{name}.")
            unknown += more
        known[name] = value
    return known, unknown


def _section(root: type, section: type, values: Mapping[str, Any], path: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(section)}
    arguments = {}
    for name, value in values.items():
        full_name = path + name
        if name not in fields:
            raise InputError(unknown_key(root, full_name))
        kind = fields[name].type
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, Mapping | ml_collections.ConfigDict):
                raise InputError(f"config.{full_name} is a section: set a key inside it")
            arguments[name] = _section(root, kind, value, full_name + ".")
        else:
            arguments[name] = _typed(value, kind, f"config.{full_name}")
    return section(**arguments)


def _accepted_types(kind: Any) -> list[type]:
    """The plain types of an annotation: `float | None` → [float, NoneType]."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else [kind]
    return [typing.get_origin(option) or option for option in options]


def _in_words(accepted: Sequence[type]) -> str:
    return " or ".join(kind.__name__ for kind in accepted if kind is not types.NoneType)


def _typed(value: Any, kind: Any, name: str) -> Any:
    accepted = _accepted_types(kind)
    if isinstance(value, list) and tuple in accepted:
        value = tuple(value)  # JSON has no tuples
    if float in accepted and type(value) is int:
        value = float(value)
    # bool is a subclass of int, but True is no number of layers.
    if type(value) not in accepted:
        raise InputError(f"{name}={value!r}: expected {_in_words(accepted)}")
    if type(value) is tuple:
        element = typing.get_args(kind)[0]
        value = tuple(_typed(item, element, name) for item in value)
    return value


def check_ranges(config: Any) -> None:
    """Raises InputError for the first value that its key's range does not hold."""
    for name, field in keys(type(config)).items():
        field.metadata["range"].check(get(config, name), f"config.{name}")


def check_read(config: Any, undecided: Collection[str] = ()) -> None:
    """Refuses a key that is set, to something other than its default, and would not be read.

    Args:
        config: the whole configuration.
        undecided: keys that are still to be set; conditions on them are taken to hold.

    Raises:
        InputError: there is such a key.
    """
    for name, field in keys(type(config)).items():
        value = get(config, name)
        if value == field.default:
            continue
        for condition in field.metadata["read_if"]:
            others = condition.keys
            if any(key in undecided or condition.within.holds(get(config, key)) for key in others):
                continue
            there = " and ".join(f"config.{key} is {get(config, key)!r}" for key in others)
            raise InputError(
                f"config.{name}={value!r} would not be read, as {there}: leave it at "
                f"{field.default!r}, or set {' or '.join(others)} to {condition.within}"
            )


def from_text(text: str, kind: Any, name: str) -> Any:
    """The value of a key that a text on a command line stands for.

    A tuple may be written as in Python or as its elements with commas between them; commas inside
    brackets, as regular expressions have them, belong to an element.

    Args:
        text: what stands there.
        kind: the key's type.
        name: what it is called, for messages.

    Raises:
        InputError: it is a value of another type.
    """
    accepted = _accepted_types(kind)
    if types.NoneType in accepted and text == "None":
        return None
    if str in accepted:
        return text
    value = _TRUTHS.get(text.lower()) if bool in accepted else _literal(text)
    if tuple in accepted and not isinstance(value, tuple | list):
        element = typing.get_args(kind)[0]
        parts = [value] if isinstance(value, str) else _split(text)
        value = tuple(from_text(part, element, name) for part in parts)
    if value is None:
        raise InputError(f"{name}={text}: expected {_in_words(accepted)}")
    return _typed(value, kind, name)


def _literal(text: str) -> Any:
    """The number or tuple that a text is in Python; None where it is neither."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _split(text: str) -> list[str]:
    """The parts of a text between commas that are in no brackets."""
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth <= 0:
            parts.append(text[start:place])
            start = place + 1
    return [part.strip() for part in (*parts, text[start:]) if part.strip()]
