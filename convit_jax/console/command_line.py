"""What all commands share: exit codes, one-sentence errors, flags, and `--config`."""

import argparse
import contextlib
import dataclasses
import io
import os
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import UnionType
from typing import Any, NoReturn, TextIO

from convit_jax.config import Config
from convit_jax.config.files import Overrides, make_config, split_overrides
from convit_jax.config.typed import from_text, keys
from convit_jax.errors import InputError, RunError, first_line, in_one_line, machine_fault, nearest
from convit_jax.models import Architecture
from convit_jax.models.architecture import as_image_size


def run(name: str, command: Callable[[], int | None]) -> int:
    """Run a command and turn the way it ends into an exit code (docs/exit_codes.md).

    Errors are printed as one sentence on standard error.

    Args:
        name: the command's name, with which messages begin.
        command: returns an exit code, or None for 0.

    Returns:
        The command's exit code; 2 for a user's mistake; 1 for a run that cannot continue; 130
        after Ctrl-C; 141 where the reader of standard output is gone.
    """
    try:
        code, message = _outcome(command)
        if message:
            # What a failed library call leaves behind, such as coroutines that nobody awaited,
            # Python would report after the message, when it collects it.
            warnings.simplefilter("ignore")
            print_message(name, message)
        return code
    finally:
        # Python flushes both again at exit, and a stream that refuses changes the code to 120.
        _discard_unwritten(sys.stdout)
        _discard_unwritten(sys.stderr)


def _outcome(command: Callable[[], int | None]) -> tuple[int, str]:
    """Return a command's exit code, and the message to print if it failed."""
    try:
        with _naming_standard_output():
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
        file = getattr(error, "filename", None)
        if isinstance(error, BrokenPipeError) and file == _STANDARD_OUTPUT:
            return 141, ""  # the reader, such as `head`, has read enough
        fault = machine_fault(error)
        if fault is None:
            raise  # a defect of this program: its traceback is needed
        return 1, f"{fault} ({file or first_line(error)})"


_STANDARD_OUTPUT = "standard output"


class _Output:
    """Standard output whose errors carry the name "standard output" as their file name."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text to the stream."""
        with self._named():
            return self._stream.write(text)

    def flush(self) -> None:
        """Flush the stream."""
        with self._named():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            error.filename = _STANDARD_OUTPUT
            raise


@contextlib.contextmanager
def _naming_standard_output() -> Iterator[None]:
    """Let errors of standard output name it, and let it print file names of any bytes."""
    stream = sys.stdout
    if stream is None:  # closed before the program began
        yield
        return
    if isinstance(stream, io.TextIOWrapper):
        # File names may hold bytes that are not UTF-8, and a terminal may be ASCII only.
        utf8 = stream.encoding.lower() == "utf-8"
        stream.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")
    sys.stdout = _Output(stream)
    try:
        yield
    finally:
        sys.stdout = stream


def _discard_unwritten(stream: TextIO | None) -> None:
    """Drop what a stream refuses to write."""
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def print_message(name: str, message: str) -> None:
    """Print `name: message` on standard error, on one line whatever file names it quotes."""
    # The exit code does not change if standard error cannot be written.
    with contextlib.suppress(OSError):
        if sys.stderr is not None:
            print(f"{name}: {in_one_line(message)}", file=sys.stderr, flush=True)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are `InputError`s that name the nearest flag."""

    def __init__(self, **options: Any) -> None:
        """Take argparse's options; flags must be spelt in full, documentation keeps its lines."""
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def add_option(self, flag: str, default: Any, meaning: str, **options: Any) -> None:
        """Add a flag of the type of its default, which the help states."""
        text = f"{meaning} (default {default})"
        self.add_argument(flag, type=type(default), default=default, help=text, **options)

    def parse_args(  # type: ignore[override]  # argparse overloads it by namespaces' types
        self, argv: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Parse as argparse does, but report a misspelt flag before a missing one."""
        argv = sys.argv[1:] if argv is None else argv
        known = self.known_flags()
        for argument in argv:
            flag = argument.partition("=")[0]
            if flag.startswith("--") and len(flag) > 2 and flag not in known:
                raise InputError(f"no flag {flag}: {nearest(flag, known)} (see --help)")
        arguments, unexpected = self.parse_known_args(argv, namespace)
        if unexpected:
            raise InputError(f"unexpected argument '{unexpected[0]}' (see --help)")
        return arguments

    def error(self, message: str) -> NoReturn:
        """Report argparse's own errors like all others."""
        raise InputError(f"{message} (see --help)")

    def print_help(self, file: Any = None) -> None:
        """Print the help; unlike argparse's, an error of standard output is reported."""
        print(self.format_help(), end="", file=file, flush=True)

    def known_flags(self) -> set[str]:
        """Return the flags of this parser and of its subcommands."""
        flags = {flag for flag in self._option_string_actions if flag.startswith("--")}
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                flags = flags.union(*(p.known_flags() for p in action.choices.values()))
        return flags


def expect(arguments: argparse.Namespace, name: str, holds: bool, expected: str) -> None:
    """Raise InputError that names a flag and its value, unless the condition `holds`."""
    if not holds:
        flag = name.replace("_", "-")
        raise InputError(f"--{flag}={getattr(arguments, name)}: expected {expected}")


def add_weights_flags(parser: Parser) -> None:
    """Add `--weights` and `--override`."""
    parser.add_argument(
        "--weights",
        required=True,
        metavar="W",
        help="a .safetensors or .pth file, a directory with model.safetensors, a checkpoint, a "
        "workdir, https://… or hf://ORG/NAME; a running average is preferred where there is one, "
        "and W#model, W#state_dict or W#params selects another entry",
    )
    add_override_flag(parser)


def add_override_flag(parser: Parser) -> None:
    """Add `--override FIELD=VALUE`, which `overrides` reads."""
    parser.add_argument(
        "--override",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="a field of the model: image_size=384 (positions are resampled), dtype=bfloat16, "
        "num_heads=6 where it cannot be inferred from the tensors",
    )


def overrides(settings: Iterable[str]) -> dict[str, Any]:
    """Return the values of `--override FIELD=VALUE` by the fields of `Architecture`.

    Raises:
        InputError: an unknown field, or a value of another type.
    """
    types = {field.name: field.type for field in dataclasses.fields(Architecture)}
    fields: dict[str, Any] = {}
    for setting in settings:
        name, _, text = setting.partition("=")
        if name not in types:
            raise InputError(
                f"--override {name}: models have no such field, {nearest(name, types)}"
            )
        if name == "num_classes":
            raise InputError(
                "--override num_classes: the weights' head has the classes it was trained for; for "
                "others, train with --config.init_from"
            )
        value = from_text(text, types[name], f"--override {name}")
        if name == "image_size" and len(value) == 1:
            value = as_image_size(*value)
        fields[name] = value
    return fields


def add_config_flag(parser: Parser) -> None:
    """Add `--config`; `parse` also reads `--config.key=value`."""
    parser.add_argument(
        "--config",
        metavar="configs/FILE.py[:ARGUMENTS]",
        help="the experiment; --config.key=value changes a key of it (train.py --help lists them)",
    )


def parse(
    parser: Parser, argv: Sequence[str] | None = None
) -> tuple[argparse.Namespace, Overrides]:
    """Parse the flags of a command that has `--config`.

    Args:
        parser: the command's flags, `--config` among them.
        argv: the command line without the program's name; by default this process's.

    Returns:
        The flags, and the values of `--config.key=value` for `read_config`.

    Raises:
        InputError: an unknown flag or key, or one without a value.
    """
    settings, others = split_overrides(sys.argv[1:] if argv is None else argv)
    known = parser.known_flags()
    for argument in others:
        name = argument.partition("=")[0].removeprefix("--")
        # --model.depth=2 lacks the word config; in --cfg.seed=1 it is misspelt.
        key = name if name in keys(Config) else name.partition(".")[2]
        if argument.startswith("--") and f"--{name}" not in known and key in keys(Config):
            raise InputError(f"no flag --{name}: did you mean --config.{key}?")
    return parser.parse_args(others), settings


def read_config(arguments: argparse.Namespace, settings: Overrides) -> Config:
    """Return the checked configuration of `--config` and its overrides.

    Raises:
        InputError: there is none, or it is wrong.
    """
    if not arguments.config:
        raise InputError("expected --config=configs/FILE.py")
    return make_config(arguments.config, settings)


def describe_keys() -> str:
    """Return every config key with its type, default, range and meaning, for `--help`."""
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


def _type_name(kind: Any) -> str:
    if isinstance(kind, UnionType):
        kind = kind.__args__[0]
    return kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind)
