"""Writing a file so that whoever reads it sees a whole one, or none."""

import os
import pathlib
import socket
import tempfile
from collections.abc import Callable

from etils import epath

from convit_jax.errors import boundary


def write_whole(path: epath.PathLike, write: Callable[[pathlib.Path], object]) -> None:
    """Writes a file that is there whole or not at all, several writers at a time too.

    Args:
        path: where to, `gs://` too; what was there is replaced. Directories above it are made.
        write: writes to the path it is given.

    Raises:
        InputError: the place cannot be written to.
        MachineError: the machine is to blame for that: no space is left, or no memory.
    """
    path = epath.Path(path)
    with boundary(str(path), "cannot be written", chosen=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        if "://" in str(path):
            with tempfile.TemporaryDirectory() as directory:
                local = pathlib.Path(directory) / path.name
                write(local)
                path.write_bytes(local.read_bytes())
            return
        draft = pathlib.Path(path.parent) / f".{path.name}.{socket.gethostname()}.{os.getpid()}"
        try:
            write(draft)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
