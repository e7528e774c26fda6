"""Search for image files."""

import collections
import glob
import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Sequence

from etils import epath
from PIL import Image

from convit_jax.data.images.decoding import FORMATS
from convit_jax.errors import InputError, boundary
from convit_jax.system.paths import expand_home

log = logging.getLogger(__name__)

# Suffixes of the image files to look for in folders, by Pillow's format names. An MPO is a JPEG
# followed by further pictures.
SUFFIXES = frozenset(
    suffix
    for suffix, image_format in Image.registered_extensions().items()
    if image_format in (*FORMATS, "MPO")
)
COMMON_SUFFIXES = ".jpg, .png, .webp, .tif and others"
# Compared first: to compare a file's end with these takes a third of the time of a look-up.
_FREQUENT_SUFFIXES = (".JPEG", ".jpg", ".png", ".jpeg")

# Files that operating systems create in folders; they are not reported as skipped.
_SYSTEM_FILES = ("thumbs.db", "desktop.ini")


def iter_images(
    directory: epath.Path, prefix: str = "", skipped: collections.Counter[str] | None = None
) -> Iterator[str]:
    """Yield the paths, relative to a directory, of the images in it, recursively.

    Hidden files and directories are ignored.

    Args:
        directory: where to look.
        prefix: text before each path.
        skipped: incremented, by suffix, for each file that is not an image.

    Raises:
        InputError: a directory cannot be listed.
        MachineError: it cannot be listed through a fault of the machine.
    """
    return itertools.chain.from_iterable(_walk(directory, prefix, skipped, ()))


def _walk(
    directory: epath.Path,
    prefix: str,
    skipped: collections.Counter[str] | None,
    ancestors: tuple[str, ...],
) -> Iterator[list[str]]:
    """Yield the images of each directory in a tree of directories.

    A dataset may have millions of files, hence little is done for each.
    """
    with boundary(str(directory), "cannot be listed"):
        directories, files = _list_entries(directory)
        real_path = str(directory) if "://" in str(directory) else os.path.realpath(directory)
    if real_path in ancestors:
        return  # a symbolic link to a parent directory
    images = [
        prefix + file
        for file in files
        if (file.endswith(_FREQUENT_SUFFIXES) or file[file.rfind(".") :].lower() in SUFFIXES)
        and file[0] != "."
    ]
    yield images
    if skipped is not None and len(images) < len(files):
        _count_skipped(files, skipped)
    ancestors = (*ancestors, real_path)
    for child in directories:
        if not child.startswith("."):
            yield from _walk(directory / child, f"{prefix}{child}/", skipped, ancestors)


def _count_skipped(files: Iterable[str], skipped: collections.Counter[str]) -> None:
    for file in files:
        suffix = os.path.splitext(file)[1].lower()  # noqa: PTH122  (a path takes much longer)
        if not (suffix in SUFFIXES or file.startswith(".") or file.lower() in _SYSTEM_FILES):
            skipped[suffix.rstrip(".") or "without a suffix"] += 1


def _list_entries(directory: epath.Path) -> tuple[list[str], list[str]]:
    """Return the names of a directory's directories, and of its other entries."""
    directories: list[str] = []
    files: list[str] = []
    if "://" in str(directory):
        for path in directory.iterdir():
            # Asking a remote storage about every image would take a request each.
            is_directory = path.suffix.lower() not in SUFFIXES and path.is_dir()
            (directories if is_directory else files).append(path.name)
    else:
        with os.scandir(directory) as entries:
            for entry in entries:
                (directories if entry.is_dir() else files).append(entry.name)
    return directories, files


def log_skipped(skipped: collections.Counter[str], name: str) -> None:
    """Log in one line how many files of which types were skipped, if any."""
    if skipped:
        counts = ", ".join(f"{count} {suffix}" for suffix, count in skipped.most_common(8))
        others = f" and {len(skipped) - 8} other types" if len(skipped) > 8 else ""
        log.warning("%s: skipped files that are not supported images: %s%s", name, counts, others)


def find_images(names: Sequence[str]) -> list[str]:
    """Return the paths of the images that names stand for, in order, without duplicates.

    Args:
        names: files, folders (all images in them, recursively, sorted) and patterns such as
            `a/*.jpg`, with `**` for directories at any depth. `~` is the home directory.

    Raises:
        InputError: a folder has no images, or a pattern matches nothing.
        MachineError: a folder cannot be listed through a fault of the machine.
    """
    paths: dict[str, None] = {}
    for typed_name in names:
        with boundary(typed_name):
            name = expand_home(typed_name)
            path = epath.Path(name)
            is_folder, exists = path.is_dir(), path.exists()
        if is_folder:
            skipped: collections.Counter[str] = collections.Counter()
            matches = sorted(iter_images(path, name.rstrip("/") + "/", skipped))
            log_skipped(skipped, name)
            if not matches:
                raise InputError(f"no images ({COMMON_SUFFIXES}) in the folder {name}")
        elif not exists and glob.has_magic(name):
            matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207  (absolute ones, too)
            if not matches:
                raise InputError(f"no file matches {name}")
        else:
            matches = [name]
        paths |= dict.fromkeys(matches)
    return list(paths)
