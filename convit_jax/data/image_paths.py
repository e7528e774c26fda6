"""Which files are images, and where they lie."""

import glob
from collections.abc import Iterator, Sequence

from etils import epath

from convit_jax.errors import InputError
from convit_jax.paths import expand_home

# Image files that a folder is searched for.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def images_below(directory: epath.Path, name: str) -> Iterator[str]:
    """Paths of the images in a directory and in those inside it, each beginning with `name`."""
    for entry in directory.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.suffix.lower() in SUFFIXES:
            yield f"{name}/{entry.name}"
        elif entry.is_dir():
            yield from images_below(entry, f"{name}/{entry.name}")


def find_images(names: Sequence[str]) -> list[str]:
    """The image files that names stand for, each once, in order.

    Args:
        names: files, folders (all images below them, sorted) and patterns such as `a/*.jpg`, `**`
            for folders at any depth.

    Raises:
        InputError: a folder without images, or a pattern that matches nothing.
    """
    found: dict[str, None] = {}
    for name in map(expand_home, names):
        path = epath.Path(name)
        if path.is_dir():
            inside = sorted(images_below(path, name.rstrip("/")))
            if not inside:
                raise InputError(f"no images ({', '.join(SUFFIXES)}) in the folder {name}")
        elif not path.exists() and glob.has_magic(name):
            inside = sorted(glob.glob(name, recursive=True))  # noqa: PTH207  (absolute ones, too)
            if not inside:
                raise InputError(f"no file matches {name}")
        else:
            inside = [name]
        found |= dict.fromkeys(inside)
    return list(found)
