"""One worker a cell: claims that end with the process that holds them, however it ends."""

import contextlib
import fcntl
import os
import pathlib
import socket
from collections.abc import Iterator

from convit_jax.errors import InputError

_FILE = "claim"


class TakenError(Exception):
    """Another process is at work on the cell; the message says which."""


@contextlib.contextmanager
def claim(directory: pathlib.Path) -> Iterator[None]:
    """Holds a cell's directory, which is made.

    The claim is a lock of the operating system on a file, not the file: a process that is killed
    leaves nothing that would have to be cleared away.

    Raises:
        TakenError: another process holds it.
        InputError: the directory cannot be made, or its file system has no locks.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / _FILE).open("a+")
    except OSError as error:
        raise InputError(f"cannot write to {directory}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise TakenError(file.read().strip() or "another process") from error
        except OSError as error:
            raise InputError(
                f"{directory} is on a file system without locks ({error.strerror}), which keep "
                "two workers from training the same cell: choose another --out"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
