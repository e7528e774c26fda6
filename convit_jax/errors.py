"""What went wrong, in one sentence that says how to mend it."""

import contextlib
import difflib
import errno
import os
import re
from collections.abc import Iterable, Iterator, Sequence

_LONGEST_LINE = 200
_LONGEST_WORD = 1000

# What a machine can lack or refuse while a sound file is read or written, in words.
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

# How libraries that have no numbers say the same: XLA and TensorStore by the names of their
# states, TensorFlow's gs:// by what its HTTP library or the answer said.
_LIBRARY_WORDS = {
    r"Out of memory|RESOURCE_EXHAUSTED: .*memory": errno.ENOMEM,
    r"PERMISSION_DENIED|UNAUTHENTICATED|HTTP response code 40[13]": errno.EACCES,
    r"DEADLINE_EXCEEDED|UNAVAILABLE|HTTP response code (429|5\d\d)": errno.ETIMEDOUT,
    r"libcurl code \d+": errno.EHOSTUNREACH,
}

# The numbers of TensorFlow's errors, which its words need not tell: deadline exceeded, permission
# denied, aborted (after every attempt to ask again), unavailable, unauthenticated.
_TENSORFLOW_STATUS = {
    4: errno.ETIMEDOUT,
    7: errno.EACCES,
    10: errno.ETIMEDOUT,
    14: errno.EHOSTUNREACH,
    16: errno.EACCES,
}

# What the system refuses by its rules. Of something to read that is the machine's state; of a
# place that someone chose to write to it is the choice.
_REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS)


class InputError(ValueError):
    """A mistake in what the user gave: a flag, a config, data, weights or a workdir.

    Its message is one clear sentence (what was wrong, where, what was expected). Commands print
    it without a traceback and exit with code 2.
    """


class RunError(RuntimeError):
    """A run that cannot go on, through no mistake in what it was given.

    Its message is one clear sentence. Commands print it without a traceback and exit with code 1.
    """


class MachineError(RunError):
    """The machine failed, not what was read: no descriptors, memory, permission or storage."""


@contextlib.contextmanager
def boundary(name: str, problem: str = "cannot be read", chosen: bool = False) -> Iterator[None]:
    """The one place where something from outside comes in: a file, an image, an answer, a config.

    Whatever a library raises inside becomes one sentence that names the culprit. Sentences of our
    own pass through as they are.

    Args:
        name: what is being read, as the user knows it.
        problem: what to say of it where it is to blame.
        chosen: whether it is a place that the user chose to write to: permissions are then its
            fault, not the machine's.

    Raises:
        InputError: what came in is to blame.
        MachineError: the machine is.
    """
    try:
        yield
    except (InputError, RunError):
        raise
    except Exception as error:
        code = _fault_code(error)
        if code is None:
            where = getattr(error, "filename", None)
            beside = f" ({where})" if isinstance(where, str) and where not in name else ""
            raise InputError(f"{name} {problem}: {first_line(error)}{beside}") from error
        if chosen and code in _REFUSALS:
            raise InputError(f"{name} {problem}: {_MACHINE_FAULTS[code]}") from error
        raise MachineError(f"{name}: {_MACHINE_FAULTS[code]}") from error


def machine_fault(error: BaseException) -> str | None:
    """What the machine lacked or refused, or None where the error says nothing of the machine.

    Libraries that read by themselves (TensorStore, ArrayRecord) pass on the system's words rather
    than its number, so the words count too.
    """
    code = _fault_code(error)
    return None if code is None else _MACHINE_FAULTS[code]


@contextlib.contextmanager
def fitting_memory(what: str) -> Iterator[None]:
    """Says what did not fit the memory, the host's or a device's, where something does not.

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
        raise MachineError(f"{what}: no memory is left for it ({first_line(error)})") from error


def _fault_code(error: BaseException) -> int | None:
    """The system's number of what the machine lacked or refused, if the error says so.

    JAX's own errors are of devices and of other processes, not of storage, in much the same words:
    of those memory alone counts.
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
        for words, code in _LIBRARY_WORDS.items():
            if re.search(words, text) and (not is_jax or code == errno.ENOMEM):
                return code
        status = getattr(cause, "error_code", None)
        if status in _TENSORFLOW_STATUS:
            return _TENSORFLOW_STATUS[status]
        cause = cause.__cause__
    return None


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its type where it says nothing; never very long."""
    # The system's words without its number and path, which the message has before them.
    text = (str(getattr(error, "strerror", None) or "") or str(error)).strip()
    line = " ".join(text.splitlines()[0].split()) if text else type(error).__name__
    # Storage errors name a long path first and the reason last.
    half = _LONGEST_LINE // 2
    return line if len(line) <= _LONGEST_LINE else f"{line[:half]} … {line[-half:]}"


def in_one_line(text: str) -> str:
    """A text with what is no letter, sign or space written out, and what is very long cut.

    File names may hold line ends, a terminal's commands, or bytes that are no UTF-8.
    """
    line = "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )
    half = _LONGEST_WORD // 2
    return re.sub(rf"\S{{{_LONGEST_WORD},}}", lambda m: f"{m[0][:half]}…{m[0][-half:]}", line)


def nearest(name: str, choices: Iterable[str]) -> str:
    """Names the choices closest to a misspelt `name`.

    Args:
        name: what the user wrote.
        choices: everything that would have been valid.

    Returns:
        "did you mean 'x'?" where one choice is close, otherwise "expected one of a, b, c".
    """
    choices = sorted(choices)
    # Names here are lower case throughout, so case never tells two of them apart.
    close = difflib.get_close_matches(name.lower(), choices, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"expected one of {', '.join(choices)}"


def some(names: Sequence[str], count: int = 5) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - count:,} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
