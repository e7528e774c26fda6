"""Writing a file atomically: readers see all of it, or none."""

import os
import pathlib
import socket
import tempfile
from collections.abc import Callable

from etils import epath

from convit_jax.errors import boundary


def write_whole(
    path: epath.PathLike, content: str | bytes | memoryview | Callable[[pathlib.Path], object]
) -> None:
    """Write a file atomically, also with several writers at a time.

    Args:
        path: the file, local or gs://; it is replaced if it exists. Parent directories are created.
        content: of the file, or a function that is called with a local path to write to.

    Raises:
        InputError: the place cannot be written to.
        MachineError: the same, by a fault of the machine: no space or memory is left.
    """

    def write(file: pathlib.Path) -> None:
        if isinstance(content, str):
            file.write_text(content)
        elif isinstance(content, bytes | memoryview):
            file.write_bytes(content)
        else:
            content(file)

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
