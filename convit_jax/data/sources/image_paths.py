"""Which files are images, and where they lie."""

import collections
import glob
import logging
import os
import pathlib
from collections.abc import Iterator, Sequence

from etils import epath
from PIL import Image

from convit_jax.data.images.decoding import FORMATS
from convit_jax.errors import InputError, boundary
from convit_jax.system.paths import expand_home

log = logging.getLogger(__name__)

# Image files that a folder is searched for, by what Pillow calls them. An MPO is a JPEG that more
# pictures follow.
SUFFIXES = frozenset(
    suffix for suffix, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO")
)
USUAL = ".jpg, .png, .webp, .tif and others"

# What systems leave beside a user's files.
_LITTER = ("thumbs.db", "desktop.ini")


def images_below(
    directory: epath.Path, name: str, left_out: collections.Counter[str] | None = None
) -> Iterator[str]:
    """Paths of the images in a directory and in those inside it, each beginning with `name`.

    Hidden files and directories are passed over.

    Args:
        directory: where to look.
        name: what to call it.
        left_out: counts the files that are no images, by suffix.

    Raises:
        InputError: a directory cannot be listed.
        MachineError: the machine does not let it be.
    """
    yield from _below(directory, name, left_out, ())


def _below(
    directory: epath.Path,
    name: str,
    left_out: collections.Counter[str] | None,
    above: tuple[str, ...],
) -> Iterator[str]:
    with boundary(str(directory), "cannot be listed"):
        entries = list(_entries(directory))
        here = str(directory) if "://" in str(directory) else os.path.realpath(directory)
    if here in above:
        return  # a link to a directory above it
    for entry, is_directory in entries:
        if entry.startswith("."):
            continue
        suffix = pathlib.PurePath(entry).suffix.lower()
        if is_directory:
            yield from _below(directory / entry, f"{name}/{entry}", left_out, (*above, here))
        elif suffix in SUFFIXES:
            yield f"{name}/{entry}"
        elif left_out is not None and entry.lower() not in _LITTER:
            left_out[suffix or "without a suffix"] += 1


def _entries(directory: epath.Path) -> Iterator[tuple[str, bool]]:
    """Each entry's name, and whether it is a directory."""
    if "://" in str(directory):
        for path in directory.iterdir():
            yield path.name, path.suffix.lower() not in SUFFIXES and path.is_dir()
        return
    with os.scandir(directory) as entries:
        for entry in entries:
            yield entry.name, entry.is_dir()


def log_left_out(left_out: collections.Counter[str], name: str) -> None:
    """Says in one line how many files of which kinds were no images, if there were any."""
    if left_out:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in left_out.most_common(8))
        more = f" and {len(left_out) - 8} other kinds" if len(left_out) > 8 else ""
        log.warning("%s: left out, as no images that are read: %s%s", name, kinds, more)


def find_images(names: Sequence[str]) -> list[str]:
    """The image files that names stand for, each once, in order.

    Args:
        names: files, folders (all images below them, sorted) and patterns such as `a/*.jpg`, `**`
            for folders at any depth. `~` is the home directory.

    Raises:
        InputError: a folder without images, or a pattern that matches nothing.
        MachineError: the machine does not let a folder be listed.
    """
    found: dict[str, None] = {}
    for given in names:
        with boundary(given):
            name = expand_home(given)
            path = epath.Path(name)
            is_folder, exists = path.is_dir(), path.exists()
        if is_folder:
            left_out: collections.Counter[str] = collections.Counter()
            inside = sorted(images_below(path, name.rstrip("/"), left_out))
            log_left_out(left_out, name)
            if not inside:
                raise InputError(f"no images ({USUAL}) in the folder {name}")
        elif not exists and glob.has_magic(name):
            inside = sorted(glob.glob(name, recursive=True))  # noqa: PTH207  (absolute ones, too)
            if not inside:
                raise InputError(f"no file matches {name}")
        else:
            inside = [name]
        found |= dict.fromkeys(inside)
    return list(found)
