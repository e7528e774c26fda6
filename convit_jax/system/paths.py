"""Paths as users type them: checked, with `~` expanded, and tried before something is written."""

import os
import platform

from etils import epath

from convit_jax.errors import InputError, boundary

# Limits of Linux and macOS, in bytes.
_LONGEST_NAME, _LONGEST_PATH = 255, 4096
_ADDRESS = "gs://"


def expand_home(name: str | os.PathLike[str], flag: str = "") -> str:
    """Expand `~` and `~USER` at the beginning of a path.

    The shell expands them only at the beginning of a word: not in `--workdir=~/runs` or
    `folder:~/images`. gs:// addresses stay unchanged.

    Args:
        name: the path as typed.
        flag: what it was typed for, such as `--out`, for messages.

    Raises:
        InputError: no file can have that name.
    """
    named = f"{flag}={name}" if flag else f"'{name}'"
    path = os.path.expanduser(name)  # noqa: PTH111  (a path object would fold the // of gs://)
    if not path:
        raise InputError(f"{named}: expected a path, got an empty one")
    if "\0" in path:
        raise InputError(f"{named}: a path cannot contain a NUL character")
    scheme, separator, address = path.partition("://")
    if separator and "/" not in scheme:
        if scheme != "gs" or not address.strip("/"):
            raise InputError(f"{named}: expected a path on this machine or {_ADDRESS}BUCKET/PATH")
        return path
    longest = max(len(os.fsencode(part)) for part in path.split("/"))
    if longest > _LONGEST_NAME or len(os.fsencode(path)) > _LONGEST_PATH:
        raise InputError(
            f"{named}: a name of {longest:,} bytes in a path of {len(os.fsencode(path)):,}, "
            f"expected at most {_LONGEST_NAME} and {_LONGEST_PATH:,}"
        )
    return path


def user_path(name: str | os.PathLike[str], flag: str = "") -> epath.Path:
    """Return the path that a user named, local or gs://; see `expand_home`.

    Raises:
        InputError: no file can have that name.
    """
    return epath.Path(expand_home(name, flag))


def path_to_write(name: str, flag: str = "") -> epath.Path:
    """Return a path to write to; see `user_path`. Libraries that write accept only UTF-8 names.

    Raises:
        InputError: no file can have that name, or it is not UTF-8.
    """
    try:
        os.fspath(name).encode()
    except UnicodeEncodeError as error:
        named = f"{flag}={name}" if flag else f"'{name}'"
        raise InputError(f"{named}: expected a name in UTF-8, to write to") from error
    return user_path(name, flag)


def is_directory(path: epath.Path) -> bool:
    """Return whether a directory exists; raise where its storage cannot be reached.

    `is_dir` alone returns False for a gs:// bucket that cannot be reached.
    """
    return path.exists() and path.is_dir()


def output_directory(name: str, flag: str) -> epath.Path:
    """Create a directory to write to, and try it, so that a mistake shows before the work.

    Args:
        name: the path as typed.
        flag: what it was typed for, such as `--out`.

    Raises:
        InputError: it cannot be created or written to.
        MachineError: the same, by a fault of the machine.
    """
    path = path_to_write(name, flag)
    with boundary(f"{flag}={name}", "cannot be used as a directory to write to", chosen=True):
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".writable-{platform.node()}-{os.getpid()}"
        probe.write_text("")
        probe.unlink(missing_ok=True)
    return path


def output_file(name: str, flag: str) -> epath.Path:
    """Return a file to write to, and try it, so that a mistake shows before the work.

    An existing file stays unchanged.

    Args:
        name: the path as typed.
        flag: what it was typed for, such as `--out`.

    Raises:
        InputError: it cannot be written to.
        MachineError: the same, by a fault of the machine.
    """
    path = path_to_write(name, flag)
    with boundary(f"{flag}={name}", "cannot be written to", chosen=True):
        if path.is_dir():
            raise InputError(f"{flag}={name} is a directory: expected a file to write to")
        if not path.exists():
            path.write_bytes(b"")
            path.unlink(missing_ok=True)  # another process may have removed it already
        elif not name.startswith(_ADDRESS):
            path.open("ab").close()
    return path
