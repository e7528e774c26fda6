"""Search for image files."""

import collections
import glob
import logging
import os
from collections.abc import Iterator, Sequence

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

# Files that operating systems create in folders; they are not reported as skipped.
_SYSTEM_FILES = ("thumbs.db", "desktop.ini")


def iter_images(
    directory: epath.Path,
    name: str,
    skipped: collections.Counter[str] | None = None,
    ancestors: tuple[str, ...] = (),
) -> Iterator[str]:
    """Yield the paths of the images in a directory, recursively, each beginning with `name`.

    Hidden files and directories are ignored.

    Args:
        directory: where to look.
        name: the name of the directory in the returned paths.
        skipped: incremented, by suffix, for each file that is not an image.
        ancestors: real paths of the directories that led here, which are not entered again.

    Raises:
        InputError: a directory cannot be listed.
        MachineError: it cannot be listed through a fault of the machine.
    """
    with boundary(str(directory), "cannot be listed"):
        entries = list(_list_entries(directory))
        real_path = str(directory) if "://" in str(directory) else os.path.realpath(directory)
    if real_path in ancestors:
        return  # a symbolic link to a parent directory
    for entry, is_directory in entries:
        if entry.startswith("."):
            continue
        # A path object would take most of the time of listing a million files.
        suffix = os.path.splitext(entry)[1].lower()  # noqa: PTH122
        if is_directory:
            inside = (directory / entry, f"{name}/{entry}")
            yield from iter_images(*inside, skipped, (*ancestors, real_path))
        elif suffix in SUFFIXES:
            yield f"{name}/{entry}"
        elif skipped is not None and entry.lower() not in _SYSTEM_FILES:
            skipped[suffix.rstrip(".") or "without a suffix"] += 1


def _list_entries(directory: epath.Path) -> Iterator[tuple[str, bool]]:
    """Yield each entry's name and whether it is a directory."""
    if "://" in str(directory):
        for path in directory.iterdir():
            # Asking a remote storage about every image would take a request each.
            yield path.name, path.suffix.lower() not in SUFFIXES and path.is_dir()
        return
    with os.scandir(directory) as entries:
        for entry in entries:
            yield entry.name, entry.is_dir()


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
            matches = sorted(iter_images(path, name.rstrip("/"), skipped))
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
