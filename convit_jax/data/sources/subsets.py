"""Part of a dataset: a share of each class, or the first classes only (paper Table 2, Fig. 8a)."""

import dataclasses
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from convit_jax.data.sources.records import NO_LABEL, ImageFiles, TFExamples
from convit_jax.data.sources.source import Source
from convit_jax.data.sources.tfrecord_index import fingerprint, keep_arrays, kept_arrays
from convit_jax.errors import InputError, boundary

log = logging.getLogger(__name__)

_THREADS = 16


def subset(source: Source, *, fraction: float, choice: str, classes: int, seed: int) -> Source:
    """The part of a source that a run uses.

    Args:
        source: the whole of it.
        fraction: share f of each class: int(n f) of its n examples.
        choice: `first` by file name, as the released code does, or `random` by the seed.
        classes: only the first so many; 0 for all.
        seed: for the random choice.

    Returns:
        A source with the examples in their old order; the given one if all are used.

    Raises:
        InputError: there are fewer classes, or the fraction leaves a class without examples.
    """
    total = len(source.class_names)
    if classes > total:
        raise InputError(f"config.data.classes={classes}: {source.name} has only {total}")
    kept = classes or total
    if fraction == 1.0 and kept == total:
        return source
    chosen = []
    for label, members in enumerate(_members_by_name(source)[:kept]):
        count = int(len(members) * fraction)
        if not count:
            smallest = 1 / len(members) if len(members) else float("nan")
            raise InputError(
                f"config.data.fraction={fraction} leaves none of the {len(members)} examples of "
                f"class '{source.class_names[label]}' in {source.name}: expected at least "
                f"{smallest:.2g}"
            )
        if choice == "random":
            members = _shuffled(members, seed, label)
        chosen.append(members[:count])
    return dataclasses.replace(
        source, class_names=source.class_names[:kept], chosen=np.sort(np.concatenate(chosen))
    )


def hold_out(source: Source, share: float, seed: int) -> tuple[Source, Source]:
    """Two parts of a source: the one to train on, and a share of each class to evaluate on.

    Args:
        source: the whole.
        share: of each class's examples, at least one of which is held out.
        seed: decides which.

    Raises:
        InputError: a class has too few examples for two parts.
    """
    held = []
    for label, members in enumerate(_members_by_name(source)):
        count = max(1, round(len(members) * share))
        if count >= len(members):
            raise InputError(
                f"config.data.holdout={share} leaves none of the {len(members)} examples of class "
                f"'{source.class_names[label]}' in {source.name} to train on: name other examples "
                "by config.data.eval, or add some"
            )
        held.append(_shuffled(members, seed, label)[:count])
    kept_out = np.sort(np.concatenate(held))
    everything = np.arange(len(source.examples)) if source.chosen is None else source.chosen
    rest = np.setdiff1d(everything, kept_out)
    return dataclasses.replace(source, chosen=rest), dataclasses.replace(source, chosen=kept_out)


def _shuffled(members: np.ndarray, seed: int, label: int) -> np.ndarray:
    """A class's examples in an order that is a function of (seed, label)."""
    return np.random.default_rng((seed & (2**64 - 1), label)).permutation(members)


def _members_by_name(source: Source) -> list[np.ndarray]:
    """The examples of each class, in the order of their file names; without those of none.

    Raises:
        InputError: the images have several labels.
    """
    if source.label_shape:
        raise InputError(f"{source.name} has several labels an image, expected one")
    labels, by_name = _labels_and_order(source)
    classes = len(source.class_names if source.label_map is None else source.label_map)
    by_name = by_name[(labels[by_name] >= 0) & (labels[by_name] < classes)]
    if source.label_map is not None:
        labels = source.label_map[np.clip(labels, 0, classes - 1)]
    if source.chosen is not None:
        by_name = by_name[np.isin(by_name, source.chosen)]
    grouped = by_name[np.argsort(labels[by_name], kind="stable")]
    counts = np.bincount(labels[by_name], minlength=len(source.class_names))
    return np.split(grouped, np.cumsum(counts)[:-1])


def occurring_classes(source: Source) -> tuple[int, ...]:
    """The labels that some example has."""
    return tuple(label for label, members in enumerate(_members_by_name(source)) if len(members))


def only_classes(source: Source, labels: Sequence[int]) -> Source:
    """The examples of some classes, in their old order, with their old labels."""
    members = _members_by_name(source)
    chosen = np.sort(np.concatenate([members[label] for label in labels]))
    return dataclasses.replace(source, chosen=chosen)


def evenly(total: int, count: int) -> np.ndarray:
    """Indices of so many of a number of things, at even distances, or of all if there are less."""
    count = min(count, total)
    return np.arange(count) * total // max(count, 1)


def spread_out(source: Source, count: int) -> Source:
    """So many of a source's examples, at even distances, or all if there are not more."""
    if count >= len(source):
        return source
    chosen = np.arange(len(source.examples)) if source.chosen is None else source.chosen
    return dataclasses.replace(source, chosen=chosen[evenly(len(chosen), count)])


def describe_classes(source: Source) -> str:
    """How many examples of each class there are, in a line."""
    counts = np.array([len(members) for members in _members_by_name(source)])
    spread = f"{counts.min()} to {counts.max()}" if np.ptp(counts) else f"{counts.min()}"
    return f"{counts.sum()} examples, {spread} of each of {len(counts)} classes"


def _labels_and_order(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Every label of the dataset, chosen or not, and the examples sorted by file name.

    Without file names they are left in their order.

    Reading them of a TFDS dataset means reading all of it once; what was found is kept.
    """
    examples = source.examples
    if isinstance(examples, ImageFiles):
        return _read_labels(examples)  # its names are sorted, and nothing needs to be read
    cache, count = f"labels_{fingerprint(examples.records.spans)}.npz", len(examples)

    def is_sound(kept: dict[str, np.ndarray]) -> bool:
        labels, by_name = kept["labels"], kept["by_name"]
        return labels.shape == (count,) and np.array_equal(np.sort(by_name), np.arange(count))

    kept = kept_arrays(cache, ("labels", "by_name"), is_sound)
    if kept is not None:
        return kept["labels"], kept["by_name"]
    log.info("reading the labels of the %d examples of %s, once", len(examples), source.name)
    labels, by_name = _read_labels(examples)
    keep_arrays(cache, labels=labels, by_name=by_name)
    return labels, by_name


def _read_labels(examples: TFExamples | ImageFiles) -> tuple[np.ndarray, np.ndarray]:
    def name_and_label(index: int) -> tuple[str, int]:
        try:
            with boundary(examples.describe(index)):
                return examples.name_and_label(index)
        except InputError as error:
            log.warning("%s: it is in no class", error)
            return "", NO_LABEL

    with ThreadPoolExecutor(min(_THREADS, 4 * (os.cpu_count() or 1))) as pool:
        found = list(pool.map(name_and_label, range(len(examples)), chunksize=256))
    names, labels = zip(*found, strict=True)
    order = np.argsort(np.asarray(names), kind="stable")
    return np.asarray(labels, np.int32), order
