"""What all commands share: how a mistake is told, and how `--config` is read."""

import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from types import UnionType

from absl import flags
from ml_collections import config_flags

from convit_jax.config import Config, resolve
from convit_jax.errors import InputError, RunError
from convit_jax.typed_config import keys, unknown_key


def run(name: str, command: Callable[[], int | None]) -> int:
    """Runs a command and turns how it ended into an exit code.

    Args:
        name: the command's, to begin messages with.
        command: returns an exit code, or None for 0.

    Returns:
        Its exit code; 2 for a user's mistake and 1 for a run that could not go on, each told in
        one sentence on standard error; 130 after Ctrl-C.
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
    _check_config_keys(argv)
    try:
        positional = _FLAGS(list(argv))[1:]
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(_reason(error)) from error
    if positional:
        raise InputError(f"unexpected argument '{positional[0]}': flags begin with --")


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


def read_config() -> Config:
    """The checked configuration that `--config` and its overrides make.

    Raises:
        InputError: there is none, or it is wrong.
    """
    if _CONFIG.value is None:
        raise InputError("expected --config=configs/FILE.py")
    try:
        return resolve(_CONFIG.value)
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
