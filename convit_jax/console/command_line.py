"""What all commands share: how a mistake is told, and how `--config` is read."""

import argparse
import contextlib
import dataclasses
import io
import itertools
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import UnionType
from typing import Any, NoReturn, TextIO

from absl import flags

from convit_jax.config import Config
from convit_jax.config.files import Overrides, make_config, split_overrides
from convit_jax.config.typed import from_text, keys
from convit_jax.errors import (
    InputError,
    RunError,
    first_line,
    in_one_line,
    machine_fault,
    nearest,
)
from convit_jax.models import Architecture
from convit_jax.models.architecture import as_image_size


def run(name: str, command: Callable[[], int | None]) -> int:
    """Runs a command and turns how it ended into an exit code.

    Args:
        name: the command's, to begin messages with.
        command: returns an exit code, or None for 0.

    Returns:
        Its exit code; 2 for a user's mistake and 1 for a run that could not go on, each told in
        one sentence on standard error; 130 after Ctrl-C; 141 where nobody reads the output
        (docs/exit_codes.md).
    """
    try:
        code, words = _outcome(command)
        if words:
            say(name, words)
        return code
    finally:
        # At its end Python would try again to write what was not taken, and end with code 120.
        _give_up(sys.stdout)
        _give_up(sys.stderr)


def _outcome(command: Callable[[], int | None]) -> tuple[int, str]:
    """A command's exit code, and what is to be said of it."""
    try:
        with _output_named():
            code = command() or 0
            if sys.stdout is not None:
                sys.stdout.flush()
        return code, ""
    except InputError as error:
        return 2, str(error)
    except RunError as error:
        return 1, str(error)
    except KeyboardInterrupt:
        return 130, "ended by Ctrl-C"
    except Exception as error:
        where = getattr(error, "filename", None)
        if isinstance(error, BrokenPipeError) and where == _OUTPUT:
            return 141, ""  # whoever read it has read enough
        fault = machine_fault(error)
        if fault is None:
            raise  # a defect of this program, which its traceback helps to find
        return 1, f"{fault} ({where or first_line(error)})"


_OUTPUT = "standard output"


class _Output:
    """Standard output, of which an error says that it is its own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes, to a file or whatever it is."""
        with self._named():
            return self._stream.write(text)

    def flush(self) -> None:
        """Writes what is still kept."""
        with self._named():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            error.filename = _OUTPUT
            raise


@contextlib.contextmanager
def _output_named() -> Iterator[None]:
    """Has errors of standard output say so, and names in it written whatever they are made of."""
    stream = sys.stdout
    if stream is None:  # it was closed before the program began
        yield
        return
    if isinstance(stream, io.TextIOWrapper):
        # File names may hold what no UTF-8 is, and a terminal may know no letters but English ones.
        utf8 = stream.encoding.lower() == "utf-8"
        stream.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")
    sys.stdout = _Output(stream)
    try:
        yield
    finally:
        sys.stdout = stream


def _give_up(stream: TextIO | None) -> None:
    """Drops what a stream does not take."""
    try:
        if stream is not None:
            stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say(name: str, words: str) -> None:
    """Tells a sentence on standard error, on one line whatever is in the names that it quotes."""
    # Not to be heard is no reason to end with another code.
    with contextlib.suppress(OSError):
        if sys.stderr is not None:
            print(f"{name}: {in_one_line(words)}", file=sys.stderr, flush=True)


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
    fields: dict[str, Any] = {}
    for setting in settings:
        name, _, text = setting.partition("=")
        if name not in kinds:
            raise InputError(
                f"--override {name}: models have no such field, {nearest(name, kinds)}"
            )
        value = from_text(text, kinds[name], f"--override {name}")
        if name == "image_size" and len(value) == 1:
            value = as_image_size(*value)
        fields[name] = value
    return fields


_FLAGS = flags.FLAGS
flags.DEFINE_string("config", None, "The experiment: configs/FILE.py or configs/FILE.py:ARGUMENTS.")


def parse(argv: Sequence[str]) -> Overrides:
    """Parses a command's absl flags.

    Returns:
        The `--config.key=value` among them, for `read_config`.

    Raises:
        InputError: an unknown flag or key, or one without a value.
    """
    overrides, rest = split_overrides(argv[1:])
    for argument in rest:
        name = argument.partition("=")[0].lstrip("-")
        meant = re.sub(r"^\w+\.", "", name) if name not in keys(Config) else name
        if argument.startswith("--") and name not in _FLAGS and meant in keys(Config):
            raise InputError(f"no flag --{name}: did you mean --config.{meant}?")
    _check_values(rest)
    try:
        positional = _FLAGS([*argv[:1], *rest])[1:]
    except flags.Error as error:
        raise InputError(" ".join(str(error).split())) from error
    if positional:
        raise InputError(f"unexpected argument '{positional[0]}': flags begin with --")
    return overrides


def _check_values(arguments: Sequence[str]) -> None:
    """Refuses `--config --workdir=x`, in which absl takes the second flag for the first's value."""
    for argument, following in itertools.pairwise(arguments):
        name = argument.removeprefix("--")
        known = argument.startswith("--") and name in _FLAGS and not _FLAGS[name].boolean
        if known and following.startswith("--"):
            raise InputError(f"{argument}: expected {argument}=VALUE")


def read_config(overrides: Overrides) -> Config:
    """The checked configuration that `--config` and its overrides make.

    Raises:
        InputError: there is none, or it is wrong.
    """
    if not _FLAGS.config:
        raise InputError("expected --config=configs/FILE.py")
    return make_config(_FLAGS.config, overrides)


def describe_keys() -> str:
    """Every config key with its type, default, range and meaning, as text for `--help`."""
    lines = []
    for name, field in keys(Config).items():
        default = "the model's own" if field.default is None else repr(field.default)
        span, conditions = field.metadata["range"], field.metadata["read_if"]
        allowed = f"; {span}" if span else ""
        lines.append(f"--config.{name}  ({_type_name(field.type)}, default {default}{allowed})")
        meaning = field.metadata["help"]
        if conditions:
            meaning += f". Read where {' and '.join(map(str, conditions))}."
        lines += textwrap.wrap(meaning, 92, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _type_name(kind: type | UnionType) -> str:
    if isinstance(kind, UnionType):
        kind = kind.__args__[0]
    return kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind)
