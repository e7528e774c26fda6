"""What all commands share: how a mistake is told, and how `--config` is read."""

import argparse
import ast
import dataclasses
import os
import pathlib
import re
import sys
import textwrap
import typing
from collections.abc import Callable, Iterable, Sequence
from types import UnionType
from typing import Any, NoReturn

from absl import flags
from ml_collections import config_flags

from convit_jax.config import Config, resolve
from convit_jax.errors import InputError, RunError, first_line, machine_fault, nearest
from convit_jax.models import Architecture
from convit_jax.typed_config import keys, unknown_key


def run(name: str, command: Callable[[], int | None]) -> int:
    """Runs a command and turns how it ended into an exit code.

    Args:
        name: the command's, to begin messages with.
        command: returns an exit code, or None for 0.

    Returns:
        Its exit code; 2 for a user's mistake and 1 for a run that could not go on, each told in
        one sentence on standard error; 130 after Ctrl-C; 141 where nobody reads the output.
    """
    try:
        return command() or 0
    except InputError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read standard output has read enough; Python must not flush it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        fault = machine_fault(error)
        if fault is None:
            raise  # a defect of this program, which its traceback helps to find
        where = getattr(error, "filename", None) or first_line(error)
        print(f"{name}: {fault} ({where})", file=sys.stderr)
        return 1


class Parser(argparse.ArgumentParser):
    """A command's flags; a mistake in them is an `InputError` that names the nearest flag."""

    def __init__(self, **options: Any) -> None:
        """Takes argparse's options; flags are written out and documentation is shown as it is."""
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(**{"formatter_class": formatter, "allow_abbrev": False} | options)

    def parse_args(  # type: ignore[override]
        self, argv: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """As argparse, but a misspelt flag is told before what is missing."""
        argv = sys.argv[1:] if argv is None else argv
        known = self._flags()
        for argument in argv:
            flag = argument.partition("=")[0]
            if flag.startswith("--") and len(flag) > 2 and flag not in known:
                raise InputError(f"no flag {flag}: {nearest(flag, known)} (--help tells all)")
        return super().parse_args(argv, namespace)

    def error(self, message: str) -> NoReturn:
        """Told like every other mistake."""
        raise InputError(f"{message} (--help tells all flags)")

    def _flags(self) -> set[str]:
        """Flags of this parser and of its commands."""
        flags = {flag for flag in self._option_string_actions if flag.startswith("--")}
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                flags = flags.union(*(command._flags() for command in action.choices.values()))
        return flags


def expect(arguments: argparse.Namespace, name: str, holds: bool, expected: str) -> None:
    """Raises InputError, naming a flag and its value, unless something `holds` of it."""
    if not holds:
        flag = name.replace("_", "-")
        raise InputError(f"--{flag}={getattr(arguments, name)}: expected {expected}")


def add_weights_flags(parser: argparse.ArgumentParser) -> None:
    """`--weights`, and what its tensors may not tell."""
    parser.add_argument(
        "--weights",
        required=True,
        metavar="W",
        help="a .safetensors or .pth file, a directory with model.safetensors, a checkpoint, a "
        "workdir, https://… or hf://ORG/NAME; where there is a running average it is taken, and "
        "W#model, W#state_dict or W#params asks for the other",
    )
    add_override_flag(parser)


def add_override_flag(parser: argparse.ArgumentParser) -> None:
    """`--override FIELD=VALUE`, read by `overrides`."""
    parser.add_argument(
        "--override",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="a field of the model: image_size=384 (positions are resampled), dtype=bfloat16, "
        "num_heads=6 where the tensors do not tell",
    )


def overrides(settings: Iterable[str]) -> dict[str, Any]:
    """What `--override FIELD=VALUE` says, as fields of `Architecture`.

    Raises:
        InputError: an unknown field, or a value of another type.
    """
    kinds = {field.name: field.type for field in dataclasses.fields(Architecture)}
    return {
        name: _field_value(name, value, kinds)
        for name, _, value in (setting.partition("=") for setting in settings)
    }


def _field_value(name: str, text: str, kinds: dict[str, Any]) -> Any:
    if name not in kinds:
        raise InputError(f"--override {name}: models have no such field, {nearest(name, kinds)}")
    kind = typing.get_origin(kinds[name]) or kinds[name]
    try:
        value = text if kind is str else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = None
    if name == "image_size" and type(value) is int:
        value = (value, value)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise InputError(f"--override {name}={text}: expected {_type_name(kinds[name])}")
    return value


_FLAGS = flags.FLAGS
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment: configs/FILE.py or configs/FILE.py:ARGUMENTS."
)


def parse(argv: Sequence[str]) -> None:
    """Parses a command's absl flags, `--config.key=value` among them.

    Raises:
        InputError: an unknown flag or key, a value of the wrong type, a file that is not there or
            that does not make a config.
    """
    _parse(_FLAGS, argv)


def _parse(values: flags.FlagValues, argv: Sequence[str]) -> None:
    _check_config_keys(argv)
    _check_config_file(argv)
    try:
        positional = values(_last_of_each(argv))[1:]
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(_reason(error)) from error
    if positional:
        raise InputError(f"unexpected argument '{positional[0]}': flags begin with --")


def _last_of_each(argv: Sequence[str]) -> list[str]:
    """Of a config key that is given twice the last: a tuple's values would be joined otherwise."""
    last = {argument.partition("=")[0]: i for i, argument in enumerate(argv)}
    return [
        argument
        for i, argument in enumerate(argv)
        if not re.match(r"--config\.[^=]+=", argument) or last[argument.partition("=")[0]] == i
    ]


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divides a command line into its `--config.key=value` and everything else.

    Raises:
        InputError: an unknown key, or one without a value.
    """
    overrides = [argument for argument in argv if re.match(r"--?(no)?config\.", argument)]
    for argument in overrides:
        if "=" not in argument:
            raise InputError(f"{argument}: expected {argument}=VALUE")
    _check_config_keys(["", *overrides])
    return overrides, [argument for argument in argv if argument not in overrides]


def make_config(file: str, overrides: Sequence[str]) -> Config:
    """The checked configuration of a file, for commands that read several.

    Args:
        file: configs/FILE.py or configs/FILE.py:ARGUMENTS.
        overrides: `--config.key=value` of the command line.

    Raises:
        InputError: it is not there or wrong.
    """
    values, argv = flags.FlagValues(), ["", f"--config={file}", *overrides]
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    _parse(values, argv)
    return _resolved(holder.value)


def _reason(error: BaseException) -> str:
    """What went wrong, on one line: the words of the config file's own error if there was one."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InputError) and "Traceback" not in str(cause):
            return str(cause)
        last, cause = cause, cause.__context__
    # The flags library says which flag it was; it quotes a config file's error with a traceback.
    words = last if "Traceback" in str(error) else error
    return " ".join(str(words).split())


def _check_config_keys(argv: Sequence[str]) -> None:
    known = keys(Config)
    for argument in argv[1:]:
        match = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        if match and match[1] not in known:
            raise InputError(unknown_key(Config, match[1]))


def _check_config_file(argv: Sequence[str]) -> None:
    for argument, following in zip(argv[1:], [*argv[2:], ""], strict=True):
        flag, given, value = argument.partition("=")
        if flag not in ("--config", "-config"):
            continue
        path = (value if given else following).partition(":")[0]
        if not _makes_config(pathlib.Path(path)):
            known = [str(file) for file in pathlib.Path("configs").glob("*") if _makes_config(file)]
            hint = nearest(path, known) if known else "expected configs/FILE.py"
            raise InputError(f"--config={path}: no such file that defines get_config(); {hint}")


def _makes_config(path: pathlib.Path) -> bool:
    return path.is_file() and "get_config" in path.read_text(errors="replace")


def read_config() -> Config:
    """The checked configuration that `--config` and its overrides make.

    Raises:
        InputError: there is none, or it is wrong.
    """
    if _CONFIG.value is None:
        raise InputError("expected --config=configs/FILE.py")
    return _resolved(_CONFIG.value)


def _resolved(values: Any) -> Config:
    try:
        return resolve(values)
    except (AttributeError, OSError) as error:  # a file that was not there shows up only now
        raise InputError(f"--config: {_reason(error)}") from error


def describe_keys() -> str:
    """Every config key with its type, default and meaning, as text for `--help`."""
    lines = []
    for name, field in keys(Config).items():
        default = "the model's own" if field.default is None else repr(field.default)
        lines.append(f"--config.{name}  ({_type_name(field.type)}, default {default})")
        lines += textwrap.wrap(
            field.metadata["help"], 92, initial_indent=" " * 6, subsequent_indent=" " * 6
        )
    return "\n".join(lines)


def _type_name(kind: type | UnionType) -> str:
    if isinstance(kind, UnionType):
        kind = kind.__args__[0]
    return kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind)
