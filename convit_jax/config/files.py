"""Config files and `--config.key=value` → the checked configuration.

A config file is the user's program: any error in it is reported with its line.
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
# The directory that holds configs/: the package where it is installed, the checkout otherwise.
_PACKAGE = pathlib.Path(__file__).parents[1]
_SHIPPED = _PACKAGE if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent
_OVERRIDE = re.compile(r"--?(?P<no>no)?config\.(?P<key>[^=]+)(?P<set>=(?P<value>.*))?", re.DOTALL)


def split_overrides(argv: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Split a command line into its `--config.key=value` and all other arguments.

    The value may also be the next argument, and for a boolean key `--config.key` and
    `--noconfig.key` are enough.

    Returns:
        The overrides, and the other arguments.

    Raises:
        InputError: an unknown key, or one without a value.
    """
    known, overrides, others = keys(Config), [], []
    arguments = iter(argv)
    for argument in arguments:
        match = _OVERRIDE.fullmatch(argument)
        if not match:
            others.append(argument)
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
    return overrides, others


def make_config(name: str, overrides: Overrides = (), undecided: Collection[str] = ()) -> Config:
    """Return the checked configuration of a file and the command line's changes to it.

    Args:
        name: configs/FILE.py or configs/FILE.py:ARGUMENTS.
        overrides: see `split_overrides`; if a key is given twice, the last value counts.
        undecided: keys that will be set later; see `resolve`.

    Raises:
        InputError: the file does not exist, raises an error or is wrong, or a value is wrong.
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
    """Split FILE.py:ARGUMENT; a path may contain colons too, before `.py:`."""
    file, suffix, argument = name.partition(".py:")
    if suffix:
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
    """Parse the arguments of a config file, `name=value` separated by commas.

    Args:
        argument: the text after the file's colon.
        names: the arguments that take a value.
        switches: the arguments that take none.
        paths: the arguments whose value may contain commas: a part that is not an argument
            continues the value.

    Returns:
        The values by name.

    Raises:
        InputError: an unknown name, a name given twice, or a missing or unexpected value.
    """
    values: dict[str, str] = {}
    known, name = (*names, *switches), ""
    for part in filter(None, argument.split(",")):
        word, equals, value = part.partition("=")
        if word in known:
            if word in values:
                raise InputError(f"config argument '{part}': {word} is given twice")
            if bool(value) == (word in switches):
                expected = f"{word}, which takes no value" if word in switches else f"{word}=VALUE"
                raise InputError(f"config argument '{part}': expected {expected}")
            name, values[word] = word, value
        elif name in paths and not difflib.get_close_matches(word, names if equals else switches):
            values[name] += f",{part}"
        else:
            raise InputError(f"config argument '{part}': {nearest(word, known)}")
    return values


def _read(name: str) -> dict[str, Any]:
    """Run a config file and return the result of its `get_config`."""
    file, argument = split_argument(name)
    path = _find(file)
    with boundary(f"--config={path}"):
        source = path.read_bytes()
    module = types.ModuleType(path.stem)
    module.__file__ = str(path)
    with _reporting_line(path), _importing_beside(path):
        exec(compile(source, str(path), "exec"), vars(module))  # it is the user's program
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
    """Return the arguments to call `get_config` with."""
    parameters = inspect.signature(get_config).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    accepted = [p for p in parameters if p.kind in (*positional, inspect.Parameter.VAR_POSITIONAL)]
    required = [p for p in accepted if p.kind in positional and p.default is p.empty]
    if argument and not accepted:
        raise InputError(f"--config={path}:{argument}: this config takes no argument")
    if (required and argument is None) or len(required) > 1:
        names = ", ".join(p.name for p in required)
        raise InputError(
            f"--config={path}: its {_FUNCTION}({names}) takes {len(required)} argument(s), "
            f"expected {path}:ARGUMENT for one"
        )
    return (argument,) if argument else ("",) * len(required)


def _find(file: str) -> pathlib.Path:
    """Find a config file by its path or name, in the working directory or among those shipped.

    Raises:
        InputError: there is none.
    """
    path = pathlib.Path(expand_home(file, "--config"))
    roots = [pathlib.Path(), *([] if pathlib.Path().resolve() == _SHIPPED else [_SHIPPED])]
    names = [file, f"configs/{file}", f"configs/{file}.py"]
    candidates = [path] if path.is_absolute() else [root / n for root in roots for n in names]
    for candidate in candidates:
        with boundary(f"--config={file}"):
            if candidate.is_file() and _defines(candidate):
                return candidate
    problem = f"no such file that defines {_FUNCTION}()"
    configs = [path for root in roots for path in root.glob("configs/*.py") if _defines(path)]
    if not configs:
        directories = " and ".join(str(root.resolve() / "configs") for root in roots)
        raise InputError(
            f"--config={file}: {problem}; there is none in {directories} either: expected the path "
            "of your own, or a whole installation of convit_jax, which carries some"
        )
    # These names work from every directory.
    known = {path.stem if file.isidentifier() else f"configs/{path.name}" for path in configs}
    raise InputError(f"--config={file}: {problem}; {nearest(file, known)}")


def _defines(path: pathlib.Path) -> bool:
    return _FUNCTION in path.read_text(errors="replace")


@contextlib.contextmanager
def _importing_beside(path: pathlib.Path) -> Iterator[None]:
    """Let a file in configs/ import from `configs`, whatever the working directory is."""
    root = str(path.resolve().parent.parent)
    sys.path.append(root)
    try:
        yield
    finally:
        sys.path.remove(root)


@contextlib.contextmanager
def _reporting_line(path: pathlib.Path) -> Iterator[None]:
    """Report any error of a config file with its line; InputError and RunError pass unchanged."""
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
        raise InputError(f"--config={where}: {_describe(error)}") from error


def _describe(error: BaseException) -> str:
    """Return `NameError: name 'x' is not defined`, or the nearest key for an unknown one."""
    missing = re.match(r"""['"]?Key "(\w+)" does not exist""", str(error))
    if missing:
        return unknown_key(Config, missing[1])
    message = getattr(error, "msg", None) or first_line(error)
    file = getattr(error, "filename", None) if isinstance(error, OSError) else None
    return ": ".join(dict.fromkeys(filter(None, (type(error).__name__, message, file))))


def _line_in(path: pathlib.Path, error: BaseException) -> int | None:
    """Return the number of the file's innermost line in an error's traceback."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    return next((f.lineno for f in reversed(frames) if f.filename == str(path)), None)
