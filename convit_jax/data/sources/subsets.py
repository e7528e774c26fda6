"""Subsets of a dataset: a fraction of each class, or only some classes (paper Table 2, Fig. 8a)."""

import dataclasses
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from convit_jax.data.sources.records import NO_LABEL, ImageFiles, TFExamples
from convit_jax.data.sources.source import Source
from convit_jax.data.sources.tar_images import TarImages
from convit_jax.data.sources.tfrecord_index import cache_arrays, fingerprint, load_cached_arrays
from convit_jax.errors import InputError, boundary

log = logging.getLogger(__name__)

_MAX_THREADS = 16
# Examples whose labels are read at a time: as arrays, a million take little memory.
_BLOCK = 1024


def subset(source: Source, *, fraction: float, choice: str, classes: int, seed: int) -> Source:
    """Return the part of a source that a run uses.

    Args:
        source: the full source.
        fraction: fraction f of each class: int(n f) of its n examples.
        choice: `first` by file name, as the released code does, or `random` by the seed.
        classes: number of classes to use, from label 0; 0 for all.
        seed: for the random choice.

    Returns:
        A source with the examples in their original order; `source` itself if all are used.

    Raises:
        InputError: there are fewer classes, or the fraction leaves a class without examples.
    """
    total = len(source.class_names)
    if classes > total:
        raise InputError(f"config.data.classes={classes}: {source.name} has only {total}")
    num_classes = classes or total
    if fraction == 1.0 and num_classes == total:
        return source
    selected = []
    for label, members in enumerate(_members_by_name(source)[:num_classes]):
        count = int(len(members) * fraction)
        if not len(members):
            raise InputError(
                f"{source.name} has no example of class '{source.class_names[label]}', expected "
                f"some of each of the {num_classes} classes"
            )
        if not count:
            raise InputError(
                f"config.data.fraction={fraction} leaves none of the {len(members)} examples of "
                f"class '{source.class_names[label]}' in {source.name}: expected at least "
                f"{1 / len(members):.2g}"
            )
        if choice == "random":
            members = _shuffle(members, seed, label)
        selected.append(members[:count])
    class_names, indices = source.class_names[:num_classes], np.sort(np.concatenate(selected))
    return dataclasses.replace(source, class_names=class_names, indices=indices)


def hold_out(source: Source, share: float, seed: int) -> tuple[Source, Source]:
    """Split a source into a training part and a share of each class for evaluation.

    Args:
        source: the full source.
        share: the share of each class to hold out; at least one example is.
        seed: selects the examples.

    Returns:
        The training part and the held-out part.

    Raises:
        InputError: a class has too few examples for two parts.
    """
    held_out_by_class = []
    for label, members in enumerate(_members_by_name(source)):
        count = max(1, round(len(members) * share))
        if count >= len(members):
            raise InputError(
                f"config.data.holdout={share} leaves none of the {len(members)} examples of class "
                f"'{source.class_names[label]}' in {source.name} for training: set "
                "config.data.eval to other examples, or add some"
            )
        held_out_by_class.append(_shuffle(members, seed, label)[:count])
    held_out = np.sort(np.concatenate(held_out_by_class))
    training = np.setdiff1d(_example_indices(source), held_out)
    return (
        dataclasses.replace(source, indices=training),
        dataclasses.replace(source, indices=held_out),
    )


def _example_indices(source: Source) -> np.ndarray:
    return np.arange(len(source.examples)) if source.indices is None else source.indices


def _shuffle(members: np.ndarray, seed: int, label: int) -> np.ndarray:
    """Shuffle a class's examples; the order is a function of (seed, label)."""
    return np.random.default_rng((seed & (2**64 - 1), label)).permutation(members)


def _members_by_name(source: Source) -> list[np.ndarray]:
    """Return each class's examples in file name order, without examples of invalid label.

    Raises:
        InputError: the images have several labels each.
    """
    if source.label_shape:
        raise InputError(f"{source.name} has several labels per image, expected one")
    labels, by_name = _labels_and_order(source)
    num_labels = len(source.class_names if source.label_map is None else source.label_map)
    by_name = by_name[(labels[by_name] >= 0) & (labels[by_name] < num_labels)]
    if source.label_map is not None:
        labels = source.label_map[np.clip(labels, 0, num_labels - 1)]
    if source.indices is not None:
        by_name = by_name[np.isin(by_name, source.indices)]
    grouped = by_name[np.argsort(labels[by_name], kind="stable")]
    counts = np.bincount(labels[by_name], minlength=len(source.class_names))
    return np.split(grouped, np.cumsum(counts)[:-1])


def occurring_classes(source: Source) -> tuple[int, ...]:
    """Return the labels that occur in a source."""
    return tuple(label for label, members in enumerate(_members_by_name(source)) if len(members))


def restrict_to_classes(source: Source, labels: Sequence[int]) -> Source:
    """Return the examples with the given labels, in their original order; labels are unchanged."""
    members = _members_by_name(source)
    indices = np.sort(np.concatenate([members[label] for label in labels]))
    return dataclasses.replace(source, indices=indices)


def evenly_spaced(total: int, count: int) -> np.ndarray:
    """Return up to `count` evenly spaced indices below `total`."""
    count = min(count, total)
    return np.arange(count) * total // max(count, 1)


def evenly_spaced_subset(source: Source, count: int) -> Source:
    """Return up to `count` evenly spaced examples of a source."""
    if count >= len(source):
        return source
    indices = _example_indices(source)
    return dataclasses.replace(source, indices=indices[evenly_spaced(len(indices), count)])


def class_counts(source: Source) -> np.ndarray:
    """Return the number of examples of each class, int64 [classes]."""
    return np.array([len(members) for members in _members_by_name(source)])


def describe_classes(source: Source) -> str:
    """Return a line that says how many examples of each class there are."""
    counts = class_counts(source)
    per_class = f"{counts.min()} to {counts.max()}" if np.ptp(counts) else f"{counts.min()}"
    return f"{counts.sum()} examples, {per_class} of each of {len(counts)} classes"


def _labels_and_order(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels of all examples of the dataset, and their indices in file name order.

    The order is unchanged if there are no file names. Labels of a TFDS dataset require reading all
    of it once; they are cached.

    Returns:
        int32 and int64 [number of examples], for all examples whether they are used or not.
    """
    examples = source.examples
    if isinstance(examples, TarImages):
        return examples.labels, examples.order_by_name()
    if isinstance(examples, ImageFiles):  # labels are in memory, and names are sorted
        return examples.labels, np.arange(len(examples))
    cache_name = f"labels_{fingerprint(examples.records.spans)}.npz"
    count = len(examples)

    def is_valid(arrays: dict[str, np.ndarray]) -> bool:
        labels, by_name = arrays["labels"], arrays["by_name"]
        return labels.shape == (count,) and np.array_equal(np.sort(by_name), np.arange(count))

    cached = load_cached_arrays(cache_name, ("labels", "by_name"), is_valid)
    if cached is not None:
        return cached["labels"], cached["by_name"]
    log.info("reading the labels of the %d examples of %s, once", len(examples), source.name)
    labels, by_name = _read_labels(examples)
    cache_arrays(cache_name, {"labels": labels, "by_name": by_name})
    return labels, by_name


def _read_labels(examples: TFExamples) -> tuple[np.ndarray, np.ndarray]:
    def name_and_label(index: int) -> tuple[bytes, int]:
        try:
            with boundary(examples.describe(index)):
                return examples.name_and_label(index)
        except InputError as error:
            log.warning("%s: it is assigned to no class", error)
            return b"", NO_LABEL

    def read_block(start: int) -> tuple[np.ndarray, np.ndarray]:
        block = range(start, min(start + _BLOCK, len(examples)))
        names, labels = zip(*map(name_and_label, block), strict=True)
        return np.array(names), np.array(labels, np.int32)

    # Threads help as far as reading waits for the storage. Otherwise they only pass Python's lock
    # to each other, after each read: with 16, reading records in memory took four times as long.
    wall_time, cpu_time = time.perf_counter(), time.thread_time()
    first = read_block(0)
    wall_time, cpu_time = time.perf_counter() - wall_time, time.thread_time() - cpu_time
    num_threads = min(round(wall_time / max(cpu_time, 1e-9)), _MAX_THREADS)
    with ThreadPoolExecutor(max(num_threads, 1)) as pool:
        blocks = [first, *pool.map(read_block, range(_BLOCK, len(examples), _BLOCK))]
    names, labels = (np.concatenate(arrays) for arrays in zip(*blocks, strict=True))
    return labels, np.argsort(names, kind="stable")
