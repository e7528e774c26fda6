"""Exclusive locks on files between processes."""

import contextlib
import fcntl
import os
import pathlib
import platform
from collections.abc import Iterator


class LockedError(Exception):
    """Another process holds the lock; the message names it."""


class NoLocksError(Exception):
    """The file system has no locks; the message is the system's."""


@contextlib.contextmanager
def lock_file(path: pathlib.Path, note: str = "") -> Iterator[None]:
    """Hold the lock on a file, which is created if necessary, while the context lasts.

    The operating system releases the lock when the process ends, even if it is killed, so the file
    itself means nothing and need not be removed. It names the process for `LockedError`.

    Args:
        path: file to lock.
        note: written into the file behind the name of the process.

    Raises:
        LockedError: another process holds the lock.
        NoLocksError: the file system has no locks.
        OSError: the file cannot be opened.
    """
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise LockedError(file.read().strip() or "another process") from error
        except OSError as error:
            raise NoLocksError(error.strerror) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}{note}\n")
        file.flush()
        yield
