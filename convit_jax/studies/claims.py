"""Locks on the cells of a study, so that two workers never train the same cell."""

import contextlib
import pathlib
from collections.abc import Iterator

from convit_jax.errors import InputError
from convit_jax.system.file_lock import NoLocksError, lock_file


@contextlib.contextmanager
def lock_cell(directory: pathlib.Path) -> Iterator[None]:
    """Lock a cell's directory, which is created if necessary, while the context lasts.

    Raises:
        LockedError: another process is training the cell; the message names it.
        InputError: the directory cannot be created, or its file system has no locks.
    """
    with contextlib.ExitStack() as stack:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock_file(directory / "claim"))
        except OSError as error:
            raise InputError(f"cannot write to {directory}: {error.strerror}") from error
        except NoLocksError as error:
            raise InputError(
                f"{directory} is on a file system without locks ({error}), which keep "
                "two workers from training the same cell: choose another --out"
            ) from error
        yield
