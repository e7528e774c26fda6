"""Errors whose message is one sentence, and the boundary that turns any exception into one."""

import contextlib
import difflib
import errno
import os
import re
from collections.abc import Iterable, Iterator, Sequence

_LONGEST_LINE = 200
_LONGEST_WORD = 1000

# Faults of the machine that can occur while an intact file is read or written.
_MACHINE_FAULTS = {
    errno.EMFILE: "too many open files: raise the limit (ulimit -n)",
    errno.ENFILE: "too many open files on the whole system",
    errno.ENOMEM: "no memory is left",
    errno.EACCES: "permission denied",
    errno.EPERM: "operation not permitted",
    errno.EIO: "input/output error of the storage",
    errno.ENOSPC: "no space is left on the device",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.ESTALE: "the network file system has lost the file (stale file handle)",
    errno.ETIMEDOUT: "the storage did not answer in time",
    errno.ENOTCONN: "the storage is not connected",
    errno.EHOSTDOWN: "the storage's host is down",
    errno.EHOSTUNREACH: "the storage's host cannot be reached",
    errno.ENETUNREACH: "the network cannot be reached",
    errno.ECONNREFUSED: "the storage refused the connection",
    errno.ECONNRESET: "the storage's connection broke",
}

# The same faults in messages of libraries that raise no errno: status names of XLA and
# TensorStore, HTTP and libcurl codes in TensorFlow's gs:// errors.
_LIBRARY_MESSAGES = {
    r"Out of memory|RESOURCE_EXHAUSTED: .*memory": errno.ENOMEM,
    r"PERMISSION_DENIED|UNAUTHENTICATED|HTTP response code 40[13]": errno.EACCES,
    r"DEADLINE_EXCEEDED|UNAVAILABLE|HTTP response code (429|5\d\d)": errno.ETIMEDOUT,
    r"libcurl code \d+": errno.EHOSTUNREACH,
}

# TensorFlow's error codes, as its messages may lack the name: deadline exceeded, permission denied,
# aborted (after all retries), unavailable, unauthenticated.
_TENSORFLOW_STATUS = {
    4: errno.ETIMEDOUT,
    7: errno.EACCES,
    10: errno.ETIMEDOUT,
    14: errno.EHOSTUNREACH,
    16: errno.EACCES,
}

# Permissions. For a file to read they are a fault of the machine; for a place that the user chose
# to write to, a mistake in that choice.
_PERMISSION_FAULTS = (errno.EACCES, errno.EPERM, errno.EROFS)


class InputError(ValueError):
    """A mistake in what the user gave: a flag, a config, data, weights or a workdir.

    The message is one sentence (what was wrong, where, what was expected). Commands print it
    without a traceback and exit with code 2.
    """


class RunError(RuntimeError):
    """A run that cannot continue, although its input is right.

    The message is one sentence. Commands print it without a traceback and exit with code 1.
    """


class MachineError(RunError):
    """A fault of the machine, not of a file: no descriptors, memory, permission or storage."""


@contextlib.contextmanager
def boundary(name: str, problem: str = "cannot be read", chosen: bool = False) -> Iterator[None]:
    """Turn whatever a library raises while it reads or writes external data into one sentence.

    External data are files, images, responses and configs. InputError and RunError pass unchanged.

    Args:
        name: the file or other source, as the user named it.
        problem: what to report of it if it is at fault.
        chosen: whether it is a place that the user chose to write to: missing permissions are then
            a mistake in the choice, not a fault of the machine.

    Raises:
        InputError: the data are at fault.
        MachineError: the machine is at fault.
    """
    try:
        yield
    except (InputError, RunError):
        raise
    except Exception as error:
        code = _fault_code(error)
        if code is None:
            file = getattr(error, "filename", None)
            suffix = f" ({file})" if isinstance(file, str) and file not in name else ""
            raise InputError(f"{name} {problem}: {first_line(error)}{suffix}") from error
        if chosen and code in _PERMISSION_FAULTS:
            raise InputError(f"{name} {problem}: {_MACHINE_FAULTS[code]}") from error
        raise MachineError(f"{name}: {_MACHINE_FAULTS[code]}") from error


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """Put a name before the message of an InputError: `name: message`."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def machine_fault(error: BaseException) -> str | None:
    """Describe the fault of the machine behind an error; None if it is not one.

    Libraries that do their own reading (TensorStore, ArrayRecord) pass on the system's message
    without its errno, so messages are searched too.
    """
    code = _fault_code(error)
    return None if code is None else _MACHINE_FAULTS[code]


@contextlib.contextmanager
def fitting_memory(name: str) -> Iterator[None]:
    """Name what did not fit into the memory of the host or of a device.

    Raises:
        MachineError: it does not fit.
    """
    try:
        yield
    except (InputError, RunError):
        raise
    except Exception as error:
        if _fault_code(error) != errno.ENOMEM:
            raise
        raise MachineError(f"{name}: no memory is left for it ({first_line(error)})") from error


def _fault_code(error: BaseException) -> int | None:
    """Return the errno of the machine's fault behind an error, if any.

    JAX's errors use similar words about devices and other processes, not about storage: of those
    only memory counts.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            return errno.ENOMEM
        if isinstance(cause, OSError) and cause.errno in _MACHINE_FAULTS:
            return cause.errno
        is_jax = type(cause).__module__.partition(".")[0] in ("jax", "jaxlib")
        text = str(cause)
        for code in _MACHINE_FAULTS:
            if not is_jax and os.strerror(code) in text:
                return code
        for pattern, code in _LIBRARY_MESSAGES.items():
            if re.search(pattern, text) and (not is_jax or code == errno.ENOMEM):
                return code
        status = getattr(cause, "error_code", None)
        if status in _TENSORFLOW_STATUS:
            return _TENSORFLOW_STATUS[status]
        cause = cause.__cause__
    return None


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, shortened; its type if it has no message."""
    # strerror, since the message of an OSError begins with its number and contains the path.
    text = (str(getattr(error, "strerror", None) or "") or str(error)).strip()
    line = " ".join(text.splitlines()[0].split()) if text else type(error).__name__
    # Storage errors name a long path first and the reason last.
    half = _LONGEST_LINE // 2
    return line if len(line) <= _LONGEST_LINE else f"{line[:half]} … {line[-half:]}"


def in_one_line(text: str) -> str:
    """Return a text with unprintable characters escaped and very long words shortened.

    File names may contain line ends, terminal escape codes, or bytes that are not UTF-8.
    """
    line = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )
    half = _LONGEST_WORD // 2
    return re.sub(rf"\S{{{_LONGEST_WORD},}}", lambda m: f"{m[0][:half]}…{m[0][-half:]}", line)


def nearest(name: str, choices: Iterable[str]) -> str:
    """Name the valid choice closest to a misspelt `name`.

    Args:
        name: what the user wrote.
        choices: all valid names.

    Returns:
        "did you mean 'x'?" if a choice is close, otherwise "expected one of a, b, c".
    """
    choices = sorted(choices)
    # All names here are lower case.
    close = difflib.get_close_matches(name.lower(), choices, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"expected one of {', '.join(choices)}"


def some(names: Sequence[str], count: int = 5) -> str:
    """Join the first few names, and say how many more there are."""
    suffix = f" and {len(names) - count:,} more" if len(names) > count else ""
    return ", ".join(names[:count]) + suffix
