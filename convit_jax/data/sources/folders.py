"""Directories of images: `folder:PATH`, with one directory per class."""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from etils import epath

from convit_jax.data.sources.class_names import normal_form
from convit_jax.data.sources.image_paths import COMMON_SUFFIXES, iter_images, log_skipped
from convit_jax.data.sources.packed_names import PackedNames
from convit_jax.data.sources.records import ImageFiles
from convit_jax.data.sources.source import Source
from convit_jax.errors import InputError
from convit_jax.system.paths import is_directory, user_path

PREFIX = "folder:"
# Directory names of splits, compared case-insensitively. The first evaluation name that exists is
# used.
_TRAIN = ("train", "training")
_EVAL = ("val", "valid", "validation", "dev", "eval", "evaluation", "test", "testing")


@dataclasses.dataclass(frozen=True)
class FolderSplits:
    """The splits of a dataset in a directory.

    Attributes:
        names: the directory names of all splits.
        train: the training split as `folder:PATH/train`, or None if there is none.
        eval: the preferred evaluation split, likewise.
    """

    names: tuple[str, ...]
    train: str | None
    eval: str | None


def open_folder(name: str) -> Source:
    """Open `folder:PATH`; files in subdirectories of a class directory belong to that class.

    The classes are in the alphabetical order of their names. Names are in Unicode's composed form
    (NFC), whatever form the file system uses.

    Raises:
        InputError: there is no such directory, or it does not hold class directories of images.
    """
    root, directories = _list_folder(name)
    if not directories:
        raise InputError(
            f"data '{name}': no class directories in it, expected PATH/CLASS/IMAGE"
            f" with images {COMMON_SUFFIXES}"
        )
    splits = _detect_splits(root, directories)
    if splits:
        raise InputError(f"data '{name}': {_splits_message(splits)}")
    classes = sorted(map(normal_form, directories))
    duplicates = [one for one, other in itertools.pairwise(classes) if one == other]
    if duplicates:
        raise InputError(
            f"data '{name}': two directories are called '{duplicates[0]}', in different Unicode "
            "forms: expected one directory per class"
        )
    counts: dict[str, int] = {}
    skipped: collections.Counter[str] = collections.Counter()

    def list_images() -> Iterator[tuple[str, list[str]]]:
        for directory in sorted(directories, key=normal_form):
            paths = sorted(iter_images(root / directory, skipped=skipped))
            counts[directory] = len(paths)
            yield f"{directory}/", paths

    names = PackedNames.pack(list_images())
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), list(counts.values()))
    log_skipped(skipped, name)
    empty = [directory for directory, count in counts.items() if not count]
    if empty:
        raise InputError(
            f"data '{name}': no images ({COMMON_SUFFIXES}) in the class "
            f"director{'y' if len(empty) == 1 else 'ies'} {', '.join(empty[:5])}"
        )
    return Source(name, ImageFiles(str(root).rstrip("/"), names, labels), tuple(classes))


def folder_splits(name: str) -> FolderSplits | None:
    """Return the splits in a folder, or None if it has classes instead or is not a folder.

    Args:
        name: `folder:PATH`, or any other name of a data source.
    """
    path = name.removeprefix(PREFIX)
    if not name.startswith(PREFIX) or not path or not is_directory(user_path(path)):
        return None
    return _detect_splits(*_list_folder(name))


def _list_folder(name: str) -> tuple[epath.Path, list[str]]:
    """Return the folder and the names of its directories, without hidden ones."""
    path = name.removeprefix(PREFIX)
    root = user_path(path) if path else None
    if root is None or not is_directory(root):
        raise InputError(f"data '{name}': no directory '{path}', expected {PREFIX}PATH")
    return root, sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _detect_splits(root: epath.Path, directories: Sequence[str]) -> FolderSplits | None:
    """Return the splits of a dataset, or None if the directories are classes.

    They are splits if every directory with images has the name of a split: a single class among
    others may well be called "test".
    """
    splits = [name for name in directories if name.lower() in (*_TRAIN, *_EVAL)]
    others = [name for name in directories if name not in splits]
    # List other directories only in case of doubt: there may be thousands, on remote storage.
    if not splits or any(next(iter_images(root / other), None) for other in others):
        return None
    train, evaluation = (_first_match(names, splits) for names in (_TRAIN, _EVAL))
    paths = [f"{PREFIX}{root / split}" if split else None for split in (train, evaluation)]
    return FolderSplits(tuple(splits), *paths)


def _first_match(names: Iterable[str], directories: Iterable[str]) -> str | None:
    by_name = {directory.lower(): directory for directory in directories}
    return next((by_name[name] for name in names if name in by_name), None)


def _splits_message(splits: FolderSplits) -> str:
    """Say that the directories are splits, and how to name each."""
    flags = [("config.data.train", splits.train), ("config.data.eval", splits.eval)]
    return (
        f"its directories ({', '.join(splits.names)}) are splits of a dataset, not classes: to "
        f"train, pass {' '.join(f'--{flag}={split}' for flag, split in flags if split)}; to use "
        f"one of them, name it: {splits.eval or splits.train}"
    )
