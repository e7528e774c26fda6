"""A config file and `--config.key=value` → the checked configuration.

A config file is a program of the user's: whatever goes wrong in it is told with its line.
"""

import contextlib
import difflib
import inspect
import pathlib
import re
import sys
import traceback
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from convit_jax.config import Config, resolve
from convit_jax.config.typed import from_text, keys, unknown_key
from convit_jax.errors import InputError, RunError, boundary, first_line, machine_fault, nearest
from convit_jax.system.paths import expand_home

# (dotted key, the text of its value), in the order of the command line.
Overrides = Sequence[tuple[str, str]]

_FUNCTION = "get_config"
_OVERRIDE = re.compile(r"--?(?P<no>no)?config\.(?P<key>[^=]+)(?P<set>=(?P<value>.*))?", re.DOTALL)


def split_overrides(argv: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Divides a command line into its `--config.key=value` and everything else.

    As of any flag, the value may also be the next argument, and of a key that is true or false
    `--config.key` and `--noconfig.key` are enough.

    Raises:
        InputError: an unknown key, or one without a value.
    """
    known, overrides, rest = keys(Config), [], []
    arguments = iter(argv)
    for argument in arguments:
        match = _OVERRIDE.fullmatch(argument)
        if not match:
            rest.append(argument)
            continue
        key, value = match["key"], match["value"]
        if key not in known:
            raise InputError(unknown_key(Config, key))
        is_switch = bool in (known[key].type, *getattr(known[key].type, "__args__", ()))
        if match["no"] and (match["set"] or not is_switch):
            raise InputError(f"{argument}: expected --config.{key}=VALUE")
        if value is None and is_switch:
            value = "false" if match["no"] else "true"
        if value is None:
            value = next(arguments, None)
        if value is None or (not match["set"] and value.startswith("--")):
            raise InputError(f"{argument}: expected {argument}=VALUE")
        overrides.append((key, value))
    return overrides, rest


def make_config(name: str, overrides: Overrides = (), undecided: Collection[str] = ()) -> Config:
    """The checked configuration of a file, with what the command line changes in it.

    Args:
        name: configs/FILE.py or configs/FILE.py:ARGUMENTS.
        overrides: as of `split_overrides`; of a key that is there twice the last counts.
        undecided: keys that are still to be set, as `resolve` has it.

    Raises:
        InputError: the file is not there, does not work or is wrong, or a value is.
    """
    values = _read(name)
    for key, text in overrides:
        *sections, last = key.split(".")
        section = values
        for part in sections:
            section = section.setdefault(part, {})
        section[last] = from_text(text, keys(Config)[key].type, f"--config.{key}")
    return resolve(values, undecided)


def split_argument(name: str) -> tuple[str, str | None]:
    """The file and its argument: a path may have colons of its own, before `.py:`."""
    file, ending, argument = name.partition(".py:")
    if ending:
        return f"{file}.py", argument
    if name.endswith(".py"):
        return name, None
    file, colon, argument = name.partition(":")
    return file, argument if colon else None


def split_arguments(
    argument: str,
    names: Collection[str],
    switches: Collection[str] = (),
    paths: Collection[str] = (),
) -> dict[str, str]:
    """A config's arguments, `name=value` with commas between them, by name.

    Args:
        argument: what stands after the file's colon.
        names: of the arguments that take a value.
        switches: of those that take none.
        paths: of those whose value may have commas in it: what is no argument goes on with it.

    Raises:
        InputError: an unknown name, a name that is there twice, or a value too few or too many.
    """
    given: dict[str, str] = {}
    known, name = (*names, *switches), ""
    for part in filter(None, argument.split(",")):
        word, equals, value = part.partition("=")
        if word in known:
            if word in given:
                raise InputError(f"config argument '{part}': {word} is there twice")
            if bool(value) == (word in switches):
                expected = f"{word}, which takes no value" if word in switches else f"{word}=VALUE"
                raise InputError(f"config argument '{part}': expected {expected}")
            name, given[word] = word, value
        elif name in paths and not difflib.get_close_matches(word, names if equals else switches):
            given[name] += f",{part}"
        else:
            raise InputError(f"config argument '{part}': {nearest(word, known)}")
    return given


def _read(name: str) -> dict[str, Any]:
    """What a config file's `get_config` returns."""
    file, argument = split_argument(name)
    path = _find(file)
    with boundary(f"--config={path}"):
        source = path.read_bytes()
    module = types.ModuleType(path.stem)
    module.__file__ = str(path)
    with _blamed(path), _importing_beside(path):
        exec(compile(source, str(path), "exec"), vars(module))  # as any program that is run
        get_config = getattr(module, _FUNCTION, None)
        if not callable(get_config):
            raise InputError(f"--config={path} defines no {_FUNCTION}()")
        returned = get_config(*_arguments(get_config, argument, path))
        if isinstance(returned, ml_collections.ConfigDict | ml_collections.FrozenConfigDict):
            return returned.to_dict()
    if isinstance(returned, Mapping):
        return ml_collections.ConfigDict(returned).to_dict()
    raise InputError(
        f"--config={path}: {_FUNCTION}() returns {returned!r:.60}, expected the ConfigDict that "
        "convit_jax.config.template() makes"
    )


def _arguments(get_config: Any, argument: str | None, path: pathlib.Path) -> tuple[str, ...]:
    """What to call `get_config` with."""
    takes = inspect.signature(get_config).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    accepted = [p for p in takes if p.kind in (*positional, inspect.Parameter.VAR_POSITIONAL)]
    needed = [p for p in accepted if p.kind in positional and p.default is p.empty]
    if argument and not accepted:
        raise InputError(f"--config={path}:{argument}: this config takes no argument")
    if (needed and argument is None) or len(needed) > 1:
        words = ", ".join(p.name for p in needed)
        raise InputError(
            f"--config={path}: its {_FUNCTION}({words}) takes {len(needed)} argument(s), expected "
            f"{path}:ARGUMENT for one"
        )
    return (argument,) if argument else ("",) * len(needed)


def _find(file: str) -> pathlib.Path:
    """The file that is meant: as it stands, or one of the configs here or beside the package.

    Raises:
        InputError: there is none.
    """
    path = pathlib.Path(expand_home(file, "--config"))
    beside = pathlib.Path(__file__).parent.parent
    roots = [pathlib.Path(), *([] if pathlib.Path().resolve() == beside else [beside])]
    names = [file, f"configs/{file}", f"configs/{file}.py"]
    candidates = [path] if path.is_absolute() else [root / n for root in roots for n in names]
    for candidate in candidates:
        with boundary(f"--config={file}"):
            if candidate.is_file() and _defines(candidate):
                return candidate
    problem = f"no such file that defines {_FUNCTION}()"
    known = [known for root in roots for known in root.glob("configs/*.py") if _defines(known)]
    if not known:
        looked = " and ".join(str(root.resolve() / "configs") for root in roots)
        raise InputError(
            f"--config={file}: {problem}; nor has {looked} any: expected the path of one of the "
            "repository's configs, or of your own"
        )
    # All of them are found by these names, wherever the program was started.
    named = {path.stem if file.isidentifier() else f"configs/{path.name}" for path in known}
    raise InputError(f"--config={file}: {problem}; {nearest(file, named)}")


def _defines(path: pathlib.Path) -> bool:
    return _FUNCTION in path.read_text(errors="replace")


@contextlib.contextmanager
def _importing_beside(path: pathlib.Path) -> Iterator[None]:
    """Lets a file in configs/ import from `configs`, wherever the program was started."""
    root = str(path.resolve().parent.parent)
    sys.path.append(root)
    try:
        yield
    finally:
        sys.path.remove(root)


@contextlib.contextmanager
def _blamed(path: pathlib.Path) -> Iterator[None]:
    """Tells whatever a config file raises with the line that did; sentences of ours pass."""
    try:
        yield
    except (InputError, RunError):
        raise
    except (Exception, SystemExit) as error:
        if machine_fault(error):
            with boundary(f"--config={path}"):
                raise
        line = _line_in(path, error)
        where = f"{path}, line {line}" if line else f"{path}"
        raise InputError(f"--config={where}: {_in_words(error)}") from error


def _in_words(error: BaseException) -> str:
    """`NameError: name 'x' is not defined`, or for a key that there is not, the nearest."""
    missing = re.match(r"""['"]?Key "(\w+)" does not exist""", str(error))
    if missing:
        return unknown_key(Config, missing[1])
    kind, words = type(error).__name__, getattr(error, "msg", None) or first_line(error)
    file = getattr(error, "filename", None) if isinstance(error, OSError) else None
    return ": ".join(dict.fromkeys(filter(None, (kind, words, file))))


def _line_in(path: pathlib.Path, error: BaseException) -> int | None:
    """The number of the file's last line that took part in an error."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    return next((f.lineno for f in reversed(frames) if f.filename == str(path)), None)
