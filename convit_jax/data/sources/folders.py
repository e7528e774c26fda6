"""Directories of images: `folder:PATH` with a directory for each class."""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np
from etils import epath

from convit_jax.data.sources.class_names import normal_form
from convit_jax.data.sources.image_paths import USUAL, images_below, log_left_out
from convit_jax.data.sources.records import ImageFiles
from convit_jax.data.sources.source import Source
from convit_jax.errors import InputError
from convit_jax.system.paths import is_directory, user_path

PREFIX = "folder:"
# What the parts of a dataset are called, in whatever capitals; of those to evaluate on, the one
# that is taken first of all stands first.
_TRAIN = ("train", "training")
_EVAL = ("val", "valid", "validation", "dev", "eval", "evaluation", "test", "testing")


@dataclasses.dataclass(frozen=True)
class Parts:
    """The parts of a dataset in a directory.

    Attributes:
        names: of all, as the directories are called.
        train, eval: what to train and to evaluate on, as `folder:PATH/train`, or None.
    """

    names: tuple[str, ...]
    train: str | None
    eval: str | None


def open_folder(name: str) -> Source:
    """Opens `folder:PATH`; files deeper inside a class directory belong to that class.

    The classes are in the alphabetical order of their names, which are in Unicode's composed form
    (NFC) whatever form the file system has.

    Raises:
        InputError: there is no such directory, or what is in it are no classes of images.
    """
    root, directories = _directories(name)
    if not directories:
        raise InputError(
            f"data '{name}': no class directories in it, expected PATH/CLASS/IMAGE"
            f" with images {USUAL}"
        )
    parts = _parts(root, directories)
    if parts:
        raise InputError(f"data '{name}': {_which(parts)}")
    classes = sorted(map(normal_form, directories))
    twice = [one for one, other in itertools.pairwise(classes) if one == other]
    if twice:
        raise InputError(
            f"data '{name}': two directories are called '{twice[0]}', in different forms of "
            "Unicode: expected one for each class"
        )
    names, labels, empty = [], [], []
    left_out: collections.Counter[str] = collections.Counter()
    for label, directory in enumerate(sorted(directories, key=normal_form)):
        files = sorted(images_below(root / directory, directory, left_out))
        names += files
        labels += [label] * len(files)
        if not files:
            empty.append(directory)
    log_left_out(left_out, name)
    if empty:
        raise InputError(
            f"data '{name}': no images ({USUAL}) in the class "
            f"director{'y' if len(empty) == 1 else 'ies'} {', '.join(empty[:5])}"
        )
    files = ImageFiles(str(root).rstrip("/"), tuple(names), np.asarray(labels, np.int32))
    return Source(name, files, tuple(classes))


def parts_of_folder(name: str) -> Parts | None:
    """The parts that a folder holds instead of classes; None where it does not, or is no folder.

    Args:
        name: `folder:PATH`, or any other name of examples.
    """
    path = name.removeprefix(PREFIX)
    if not name.startswith(PREFIX) or not path or not is_directory(user_path(path)):
        return None
    return _parts(*_directories(name))


def _directories(name: str) -> tuple[epath.Path, list[str]]:
    """The folder, and the directories in it that are not hidden."""
    path = name.removeprefix(PREFIX)
    root = user_path(path) if path else None
    if root is None or not is_directory(root):
        raise InputError(f"data '{name}': no directory '{path}', expected {PREFIX}PATH")
    return root, sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _parts(root: epath.Path, directories: Sequence[str]) -> Parts | None:
    """The parts of a dataset, where these directories are those and not its classes.

    They are where all that have images are called like parts: one class may well be called "test".
    """
    called_so = [name for name in directories if name.lower() in (*_TRAIN, *_EVAL)]
    others = [name for name in directories if name not in called_so]
    # Classes are looked into only where there is a doubt: there may be thousands, far away.
    if not called_so or any(next(images_below(root / other, other), None) for other in others):
        return None
    train, evaluation = (_first_called(names, called_so) for names in (_TRAIN, _EVAL))
    named = [f"{PREFIX}{root / part}" if part else None for part in (train, evaluation)]
    return Parts(tuple(called_so), *named)


def _first_called(names: Iterable[str], directories: Iterable[str]) -> str | None:
    by_name = {directory.lower(): directory for directory in directories}
    return next((by_name[name] for name in names if name in by_name), None)


def _which(parts: Parts) -> str:
    """That parts are no classes, and how each is named."""
    flags = [("config.data.train", parts.train), ("config.data.eval", parts.eval)]
    one = parts.eval or parts.train
    return (
        f"its directories ({', '.join(parts.names)}) are parts of a dataset, not classes: to "
        f"train, {' '.join(f'--{flag}={part}' for flag, part in flags if part)}; to look at "
        f"one, {one}"
    )
