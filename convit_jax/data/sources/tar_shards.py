"""Tar files of images with labels, the WebDataset layout: `wds:PATH/x-{0000..1023}.tar`."""

import logging
import os
import re
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from etils import epath

from convit_jax.data.sources import imagenet
from convit_jax.data.sources.class_names import normal_form
from convit_jax.data.sources.image_paths import COMMON_SUFFIXES
from convit_jax.data.sources.shard_patterns import expand_braces, matching_files, nearest_pattern
from convit_jax.data.sources.source import Source
from convit_jax.data.sources.tar_images import CONTRADICTORY, TarImages
from convit_jax.data.sources.tar_index import THREADS, FileState, open_index
from convit_jax.errors import InputError, boundary, naming
from convit_jax.system.paths import expand_home

log = logging.getLogger(__name__)

PREFIX = "wds:"
NAME_FORMAT = "wds:PATH/x-{0000..1023}.tar"
_SUFFIX = ".tar"
_COMPRESSED = re.compile(r".*\.(tar\.\w+|tgz|tbz2?|txz)", re.IGNORECASE)
_CLASS_NAMES = "classnames.txt"
# Without names, classes are numbered up to the greatest label, which must be below this.
_MAX_CLASSES = 100_000
# Names of shards of ImageNet or of a part of it, but not of its relatives with other classes:
# imagenet21k, imagenet-a, tiny-imagenet, imagenette.
_IMAGENET = re.compile(
    r"(?<![a-z])(?<!tiny[-_])(?<!mini[-_])imagenet([-_]?(1k|2012))?"
    r"(?![a-z0-9]|[-_]\d+k|[-_][a-z](?![a-z]))",
    re.IGNORECASE,
)


def open_tar_shards(name: str) -> Source:
    """Open `wds:PATTERN`.

    The pattern may have ranges, lists and wildcards: `x-{0000..1023}.tar`, `{a,b}.tar`, `*.tar`.
    Examples are in the order of the shards, and in each shard of their first members.

    Raises:
        InputError: shards are missing, damaged or no tar files, or labels are missing or invalid.
        MachineError: they cannot be read through a fault of the machine.
    """
    with naming(f"data '{name}'"):
        pattern = name.removeprefix(PREFIX)
        if not pattern:
            raise InputError(f"expected {NAME_FORMAT}")
        shards, states = _find_shards(pattern)
        images, notes = open_index(name, shards, states)
        if not (images.labels > CONTRADICTORY).any():
            problems = notes or ("they are empty",)
            if len(images):
                problems = (f"the label of {images.describe(0)} is no integer",)
            raise InputError(
                f"no labelled images in {_count(shards)}: {'; '.join(problems)}; expected for each "
                f"image ({COMMON_SUFFIXES}) an integer in a member with the same name and the "
                "suffix .cls, or as 'label' or 'cls' in .json"
            )
        for note in notes:
            log.warning("%s: %s", name, note)
        log.info("%s: %d images in %s", name, len(images), _count(shards))
        return Source(name, images, _class_names(name, images))


def _count(shards: Sequence[str]) -> str:
    return f"{len(shards):,} shard{'' if len(shards) == 1 else 's'}"


def _find_shards(pattern: str) -> tuple[list[str], list[FileState]]:
    """Return the files that a pattern names, and their states.

    Raises:
        InputError: some are missing, or none matches.
    """
    if _COMPRESSED.fullmatch(pattern):
        raise InputError(
            "members of compressed files cannot be read at random: expected uncompressed .tar files"
        )
    named = [expand_home(path) for path in expand_braces(pattern)]
    shards = matching_files(named)
    if not shards:
        raise InputError(f"no file matches, {nearest_pattern(named[0], _SUFFIX)}")
    with ThreadPoolExecutor(THREADS) as pool:
        states = dict(zip(shards, pool.map(_file_state, shards), strict=True))
    missing = [shard for shard, state in states.items() if state is None]
    if len(missing) == len(shards):
        raise InputError(f"no file matches, {nearest_pattern(missing[0], _SUFFIX)}")
    if missing:
        raise InputError(
            f"{len(missing):,} of {len(shards):,} shards are missing, the first is {missing[0]}"
        )
    return shards, [state for state in states.values() if state is not None]


def _file_state(path: str) -> FileState | None:
    """Return the state of a file; None if there is none.

    Raises:
        InputError: it is a directory.
        MachineError: it cannot be examined through a fault of the machine.
    """
    with boundary(path):
        try:
            if "://" in path:
                remote = epath.Path(path).stat()
                is_directory, state = remote.is_directory, FileState(remote.length, remote.mtime)
            else:
                local = os.stat(path)  # noqa: PTH116  (with times in nanoseconds)
                is_directory = stat.S_ISDIR(local.st_mode)
                state = FileState(local.st_size, local.st_mtime_ns)
        except (FileNotFoundError, NotADirectoryError):
            return None
    if is_directory:
        raise InputError(f"{path} is a directory, {nearest_pattern(path, _SUFFIX)}")
    return state


def _class_names(name: str, images: TarImages) -> tuple[str, ...]:
    """Return the names of the classes, which all labels are checked to be of.

    Raises:
        InputError: a label is not of a class.
    """
    labels = images.labels
    valid = labels[labels > CONTRADICTORY]
    path, names = _read_class_names(images.shards[0])
    num_classes, where = len(names), f", the lines of {path}"
    if not names:
        occurring = np.unique(valid)
        num_classes, where = _MAX_CLASSES, f", without a {_CLASS_NAMES}"
        if 0 <= occurring[0] <= occurring[-1] < imagenet.NUM_CLASSES and (
            len(occurring) == imagenet.NUM_CLASSES
            or _IMAGENET.search(epath.Path(images.shards[0]).name)
        ):
            names = imagenet.class_ids()
            num_classes = len(names)
            log.info("%s: its labels are taken for those of ImageNet's 1,000 classes", name)
    outside = np.flatnonzero((labels > CONTRADICTORY) & ((labels < 0) | (labels >= num_classes)))
    if len(outside):
        first = int(outside[0])
        raise InputError(
            f"the label of {images.describe(first)} is {labels[first]}, expected 0 to "
            f"{num_classes - 1:,}{where}"
        )
    return names or tuple(map(str, range(int(valid.max()) + 1)))


def _read_class_names(shard: str) -> tuple[str, tuple[str, ...]]:
    """Return the path of the list of class names of a shard, and the names; "" and () for none.

    Raises:
        InputError: a line is empty, or a name occurs twice.
    """
    path = epath.Path(shard)
    directory = (path if "://" in shard else path.absolute()).parent
    for path in (directory / _CLASS_NAMES, directory.parent / _CLASS_NAMES):
        with boundary(str(path)):
            if not path.exists():
                continue
            lines = path.read_text().rstrip().split("\n")
        line_of: dict[str, int] = {}
        for number, line in enumerate(lines, 1):
            class_name = normal_form(line.strip())
            if not class_name:
                raise InputError(f"{path}: line {number} is empty, expected the name of a class")
            first = line_of.setdefault(class_name, number)
            if first != number:
                raise InputError(f"{path}: lines {first} and {number} both name '{class_name}'")
        return str(path), tuple(line_of)
    return "", ()
