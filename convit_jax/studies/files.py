"""Files that several workers may write: whoever reads them sees a whole one."""

import os
import pathlib
import socket


def write_atomically(path: pathlib.Path, data: bytes) -> None:
    """Puts a file in its place at once, whatever else happens."""
    draft = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    draft.write_bytes(data)
    draft.replace(path)
