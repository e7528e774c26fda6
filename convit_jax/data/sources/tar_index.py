"""The index of tar shards: the samples in each, with their labels; made once and cached.

Making it reads the headers of all members and the labels, not the images, and leaves the files
unchanged.
"""

import collections
import dataclasses
import hashlib
import json
import logging
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from etils import epath

from convit_jax.data.sources.image_paths import SUFFIXES
from convit_jax.data.sources.packed_names import PackedNames
from convit_jax.data.sources.tar_images import CONTRADICTORY, UNREADABLE, TarImages
from convit_jax.data.sources.tar_members import Member, TarMembers, Window
from convit_jax.data.sources.tfrecord_index import cache_arrays, load_cached_arrays
from convit_jax.errors import InputError, boundary

log = logging.getLogger(__name__)

# Files that are examined or indexed in parallel, waiting for the disk or the network.
THREADS = 16
# Bytes read at a time. On a disk: the headers and labels between two images. From gs://, where each
# request takes as long as a megabyte: everything.
_DISK_WINDOW, _REMOTE_WINDOW = 1 << 13, 1 << 23
_LABEL_SUFFIXES = (".cls", ".json")
_LONGEST_LABEL = 1 << 20
# Anything longer is no label, and would not fit into int32.
_INTEGER = re.compile(r"-?[0-9]{1,9}")
# Changes with the format of the index.
_VERSION = 1
# The arrays of a cached index, and the kinds of their types.
_ARRAYS = {
    "shard_ends": "i", "name_content": "u", "name_ends": "i", "offsets": "i", "sizes": "i",
    "labels": "i", "notes": "U",
}  # fmt: skip


class FileState(NamedTuple):
    """A file's size in bytes and its time of modification."""

    size: int
    modified: int


@dataclasses.dataclass
class _Sample:
    """The members of a sample that have been read; the labels by suffix."""

    image: Member | None = None
    labels: dict[str, int] = dataclasses.field(default_factory=dict)

    def label(self) -> int | None:
        """Return the label, or None if there is none."""
        readable = set(self.labels.values()) - {UNREADABLE}
        if len(readable) > 1:
            return CONTRADICTORY
        return next(iter(readable or self.labels.values()), None)


class _Notes:
    """What to tell the user about shards: how often each thing occurs, and an example."""

    def __init__(self) -> None:
        self._counts: collections.Counter[str] = collections.Counter()
        self._examples: dict[str, str] = {}

    def add(self, what: str, example: str, count: int = 1) -> None:
        self._counts[what] += count
        self._examples.setdefault(what, example)

    def update(self, other: "_Notes") -> None:
        for what, count in other._counts.items():
            self.add(what, other._examples[what], count)

    def lines(self) -> list[str]:
        return [f"{n:,} {what}, such as {self._examples[what]}" for what, n in self._counts.items()]


def open_index(
    name: str, shards: Sequence[str], states: Sequence[FileState]
) -> tuple[TarImages, tuple[str, ...]]:
    """Return the images of some shards, with an index from the cache or made now.

    Args:
        name: the name of the data, for messages.
        shards: the paths of the shards.
        states: of each shard.

    Returns:
        The images, and what to tell the user about the shards.

    Raises:
        InputError: a shard is no tar file, damaged or truncated.
        MachineError: a shard cannot be read through a fault of the machine.
    """
    digest = hashlib.sha256(f"{_VERSION} {sorted(SUFFIXES)}".encode())
    for shard, state in zip(shards, states, strict=True):
        digest.update(os.fsencode(f"\n{shard} {state.size} {state.modified}"))
    cache_name = f"tar_index_{digest.hexdigest()[:20]}.npz"

    def is_valid(arrays: dict[str, np.ndarray]) -> bool:
        return (
            all(array.dtype.kind == _ARRAYS[key] for key, array in arrays.items())
            and len({len(arrays[key]) for key in ("labels", "name_ends", "offsets", "sizes")}) == 1
            and len(arrays["shard_ends"]) == len(shards)
            and arrays["shard_ends"][-1] == len(arrays["labels"])
        )

    index = load_cached_arrays(cache_name, tuple(_ARRAYS), is_valid)
    if index is None:
        if len(shards) > THREADS:
            log.info("indexing the %d shards of %s, once", len(shards), name)
        with ThreadPoolExecutor(THREADS) as pool:
            index = _join(list(pool.map(_index_shard, shards, states)))
        cache_arrays(cache_name, index)
    images = TarImages(
        shards=tuple(shards),
        shard_sizes=np.asarray([state.size for state in states], np.int64),
        shard_ends=index["shard_ends"],
        names=PackedNames(index["name_content"], index["name_ends"]),
        offsets=index["offsets"],
        sizes=index["sizes"],
        labels=index["labels"],
    )
    return images, tuple(map(str, index["notes"]))


def _join(shards: Sequence[tuple[dict[str, np.ndarray], _Notes]]) -> dict[str, np.ndarray]:
    """Return the arrays of `_ARRAYS` from those of all shards."""
    all_notes = _Notes()
    for _, notes in shards:
        all_notes.update(notes)
    parts = [arrays for arrays, _ in shards]
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    counts = [len(part["labels"]) for part in parts]
    name_bytes = [len(part["name_content"]) for part in parts]
    joined["name_ends"] += np.repeat(np.cumsum([0, *name_bytes[:-1]]), counts)
    return joined | {
        "shard_ends": np.cumsum(counts, dtype=np.int64),
        "notes": np.asarray(all_notes.lines(), np.str_),
    }


def _index_shard(path: str, state: FileState) -> tuple[dict[str, np.ndarray], _Notes]:
    """Return the images of a shard, in the order of their samples' first members, and notes.

    Raises:
        InputError: it is no tar file, damaged or truncated.
        MachineError: it cannot be read through a fault of the machine.
    """
    if not state.size:
        raise InputError(f"{path} is empty: it was not copied completely")
    notes = _Notes()
    with boundary(path), epath.Path(path).open("rb") as file:
        window = Window(file, _REMOTE_WINDOW if "://" in path else _DISK_WINDOW)
        members = TarMembers(window, state.size, path)
        samples = _read_samples(members, window, notes)
    if not members.has_end:
        notes.add("shards without a tar file's end mark, which may have lost members", path)
    images, labels = list[Member](), list[int]()
    for key, sample in samples.items():
        label = sample.label()
        if sample.image is None or label is None:
            part = "an image" if sample.image is None else "a label"
            notes.add(f"samples without {part} are skipped", f"{key} of {path}")
        else:
            images.append(sample.image)
            labels.append(label)
    names = PackedNames.pack([("", [image.name for image in images])])
    arrays = {
        "name_content": names.content,
        "name_ends": names.ends,
        "offsets": np.asarray([image.offset for image in images], np.int64),
        "sizes": np.asarray([image.size for image in images], np.int64),
        "labels": np.asarray(labels, np.int32),
    }
    return arrays, notes


def _read_samples(members: TarMembers, window: Window, notes: _Notes) -> dict[str, _Sample]:
    """Return the samples of a shard by their keys."""
    samples: dict[str, _Sample] = {}
    for member in members:
        key, suffix = split_name(member.name)
        if not suffix:
            continue
        sample = samples.setdefault(key, _Sample())
        is_image = suffix in SUFFIXES
        if is_image and sample.image is None:
            sample.image = member
        elif suffix in _LABEL_SUFFIXES and suffix not in sample.labels:
            label = _read_label(window, member, suffix)
            if label is not None:
                sample.labels[suffix] = label
        elif is_image or suffix in _LABEL_SUFFIXES:
            example = f"{member.name} of {members.path}"
            notes.add("members are ignored, as their samples have another of the kind", example)
    return samples


def split_name(name: str) -> tuple[str, str]:
    """Split a member's path at the first dot of its base name: a/b.c.JPG → a/b, .c.jpg.

    Hidden files, whose base name begins with a dot, have neither key nor suffix.
    """
    directory, slash, base = name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    return (f"{directory}{slash}{stem}", f"{dot}{suffix.lower()}") if stem else ("", "")


def _read_label(window: Window, member: Member, suffix: str) -> int | None:
    """Return the label in a .cls or .json member; None if a .json has none."""
    if member.size > _LONGEST_LABEL:
        return UNREADABLE
    try:
        text = window.read(member.offset, member.size).decode()
        if suffix == ".cls":
            return _parse_label(text)
        value = json.loads(text)
    except (ValueError, RecursionError):
        return UNREADABLE
    if not isinstance(value, dict):
        return _parse_label(value)
    labels = [_parse_label(value[key]) for key in ("label", "cls") if value.get(key) is not None]
    return next((label for label in labels if label != UNREADABLE), next(iter(labels), None))


def _parse_label(value: object) -> int:
    """Return an integer that is given as a number or a text."""
    text = str(value).strip()
    return int(text) if _INTEGER.fullmatch(text) else UNREADABLE
