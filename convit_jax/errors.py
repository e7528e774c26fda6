"""What went wrong, in one sentence that says how to mend it."""

import contextlib
import difflib
import errno
import os
from collections.abc import Iterable, Iterator, Sequence

_LONGEST_LINE = 200

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

_REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS)

# Of the statuses of Google's interfaces, by number and by name, those that blame no request.
_CLOUD_STATUS: dict[int | str, int] = {
    4: errno.ETIMEDOUT,
    7: errno.EACCES,
    10: errno.ETIMEDOUT,  # every attempt to ask again failed
    14: errno.EHOSTUNREACH,
    16: errno.EACCES,
    "DEADLINE_EXCEEDED": errno.ETIMEDOUT,
    "PERMISSION_DENIED": errno.EACCES,
    "ABORTED": errno.ETIMEDOUT,
    "UNAVAILABLE": errno.EHOSTUNREACH,
    "UNAUTHENTICATED": errno.EACCES,
}


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
def boundary(name: str, problem: str = "cannot be read", *, writes: bool = False) -> Iterator[None]:
    """The one place where something from outside comes in: a file, an image, an answer, a config.

    Whatever a library raises inside becomes one sentence that names the culprit. Sentences of our
    own pass through as they are.

    Args:
        name: what is being read, as the user knows it.
        problem: what to say of it where it is to blame.
        writes: whether it is a place that the user named to be written to: that it may not be is
            the user's mistake then, and no fault of the machine.

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
            raise InputError(f"{name} {problem}: {first_line(error)}") from error
        if writes and code in _REFUSALS:
            raise InputError(f"{name} {problem}: {_MACHINE_FAULTS[code]}") from error
        raise MachineError(f"{name}: {_MACHINE_FAULTS[code]}") from error


def machine_fault(error: BaseException) -> str | None:
    """What the machine lacked or refused, or None where the error says nothing of the machine."""
    code = _fault_code(error)
    return None if code is None else _MACHINE_FAULTS[code]


def _fault_code(error: BaseException) -> int | None:
    """The number, in `errno`, of what the machine lacked or refused.

    Libraries that read by themselves (TensorStore, ArrayRecord) pass on the system's words rather
    than its number, so the words count too; those that read gs:// say it in words of their own.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            return errno.ENOMEM
        if isinstance(cause, OSError) and cause.errno in _MACHINE_FAULTS:
            return cause.errno
        is_jax = type(cause).__module__.partition(".")[0] in ("jax", "jaxlib")
        # JAX's are of devices and of other processes, not of storage, in much the same words.
        text = "" if is_jax else str(cause)
        for code in _MACHINE_FAULTS:
            if os.strerror(code) in text:
                return code
        # TensorFlow's errors have the number of the status, TensorStore's its name.
        status = _CLOUD_STATUS.get(getattr(cause, "error_code", None) or text.partition(":")[0])
        if status is not None:
            return status
        if "libcurl code" in text:
            return errno.ENETUNREACH
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
