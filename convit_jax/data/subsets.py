"""Part of a dataset: a share of each class, or the first classes only (paper Table 2, Fig. 8a)."""

import dataclasses
import logging
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from convit_jax.data.records import ImageFiles, TFExamples
from convit_jax.data.source import Source
from convit_jax.data.tfrecord_index import cache_directory, fingerprint, keep_arrays
from convit_jax.errors import InputError

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
    labels, by_name = _labels_and_order(source)
    chosen = []
    for label in range(kept):
        members = by_name[labels[by_name] == label]
        count = int(len(members) * fraction)
        if not count:
            smallest = 1 / len(members) if len(members) else float("nan")
            raise InputError(
                f"config.data.fraction={fraction} leaves none of the {len(members)} examples of "
                f"class '{source.class_names[label]}' in {source.name}: expected at least "
                f"{smallest:.2g}"
            )
        if choice == "random":
            rng = np.random.default_rng((seed & (2**64 - 1), label))
            members = rng.permutation(members)
        chosen.append(members[:count])
    return dataclasses.replace(
        source, class_names=source.class_names[:kept], chosen=np.sort(np.concatenate(chosen))
    )


def describe_classes(source: Source) -> str:
    """How many examples of each class there are, in a line."""
    labels, _ = _labels_and_order(dataclasses.replace(source, chosen=None))
    labels = labels if source.chosen is None else labels[source.chosen]
    counts = np.bincount(labels, minlength=len(source.class_names))
    spread = f"{counts.min()} to {counts.max()}" if np.ptp(counts) else f"{counts.min()}"
    return f"{len(labels)} examples, {spread} of each of {len(counts)} classes"


def _labels_and_order(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Every example's label, and the examples sorted by file name, or as they are without names.

    Reading them of a TFDS dataset means reading all of it once; what was found is kept.
    """
    examples = source.examples
    if isinstance(examples, ImageFiles):
        return _read_labels(examples)  # its names are sorted, and nothing needs to be read
    cache = cache_directory() / f"labels_{fingerprint(examples.records.spans)}.npz"
    if cache.exists():
        with np.load(cache) as kept:
            return kept["labels"], kept["by_name"]
    log.info("reading the labels of the %d examples of %s, once", len(examples), source.name)
    labels, by_name = _read_labels(examples)
    keep_arrays(cache, labels=labels, by_name=by_name)
    return labels, by_name


def _read_labels(examples: TFExamples | ImageFiles) -> tuple[np.ndarray, np.ndarray]:
    with ThreadPoolExecutor(min(_THREADS, 4 * (os.cpu_count() or 1))) as pool:
        found = list(pool.map(examples.name_and_label, range(len(examples)), chunksize=256))
    names, labels = zip(*found, strict=True)
    order = np.argsort(np.asarray(names), kind="stable")
    return np.asarray(labels, np.int32), order
