"""Paths as people type them."""

import os
import platform

from etils import epath

from convit_jax.errors import InputError, boundary

# What Linux and macOS have room for: longer names are no file's anywhere.
_LONGEST_NAME, _LONGEST_PATH = 255, 4096
_ADDRESS = "gs://"


def expand_home(name: str | os.PathLike[str], flag: str = "") -> str:
    """A path with `~` and `~USER` at its beginning as the home directory that they stand for.

    The shell does that only where they begin a word: not in `--workdir=~/runs`, and not in
    `folder:~/images`. Addresses such as gs://BUCKET stay as they are.

    Args:
        name: as it was typed.
        flag: what it was typed for, such as `--out`, for messages.

    Raises:
        InputError: no file can have that name.
    """
    named = f"{flag}={name}" if flag else f"'{name}'"
    path = os.path.expanduser(name)  # noqa: PTH111  (a path object would fold the // of gs://)
    if not path:
        raise InputError(f"{named}: expected a path, and nothing is there")
    if "\0" in path:
        raise InputError(f"{named}: no path has a NUL character in it")
    scheme, mark, rest = path.partition("://")
    if mark and "/" not in scheme:
        if scheme != "gs" or not rest.strip("/"):
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
    """The path that a person named, local or gs://; see `expand_home`.

    Raises:
        InputError: no file can have that name.
    """
    return epath.Path(expand_home(name, flag))


def path_to_write(name: str, flag: str = "") -> epath.Path:
    """A path to write to; see `user_path`. Libraries that write take names in UTF-8 alone.

    Raises:
        InputError: no file can have that name, or it is no UTF-8.
    """
    try:
        os.fspath(name).encode()
    except UnicodeEncodeError as error:
        named = f"{flag}={name}" if flag else f"'{name}'"
        raise InputError(f"{named}: expected a name in UTF-8, to write to") from error
    return user_path(name, flag)


def is_directory(path: epath.Path) -> bool:
    """Whether there is such a directory; an error where its storage does not say.

    `is_dir` alone says no of a gs:// that cannot be reached.
    """
    return path.exists() and path.is_dir()


def output_directory(name: str, flag: str) -> epath.Path:
    """A directory to write to, made now: better a mistake told before the work than after.

    Args:
        name: as a person named it.
        flag: what for, such as `--out`.

    Raises:
        InputError: it cannot be made or written to.
        MachineError: the machine is to blame for that.
    """
    path = path_to_write(name, flag)
    with boundary(f"{flag}={name}", "cannot be used as a directory to write to", chosen=True):
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".writable-{platform.node()}-{os.getpid()}"
        probe.write_text("")
        probe.unlink(missing_ok=True)
    return path


def output_file(name: str, flag: str) -> epath.Path:
    """A file to write to, tried now: better a mistake told before the work than after.

    What is there already stays as it is.

    Args:
        name: as a person named it.
        flag: what for, such as `--out`.

    Raises:
        InputError: it cannot be written to.
        MachineError: the machine is to blame for that.
    """
    path = path_to_write(name, flag)
    with boundary(f"{flag}={name}", "cannot be written to", chosen=True):
        if path.is_dir():
            raise InputError(f"{flag}={name} is a directory: expected a file to write to")
        if not path.exists():
            path.write_bytes(b"")
            path.unlink(missing_ok=True)  # of several processes another may have been first
        elif not name.startswith(_ADDRESS):
            path.open("ab").close()
    return path
