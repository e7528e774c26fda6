"""Step → global batch: what each process reads, augments and hands to its devices.

A batch is a dictionary of NumPy arrays, this process's rows of the global batch: `image` uint8
[rows, height, width, channels], `label` int32 [rows] and, in evaluation, `mask` float32 [rows].
The caller, who knows the devices, chooses which rows those are. The content of a row does not
depend on that choice, so a step's global batch is the same for any number of processes.
"""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from convit_jax.data.health import BrokenImageCounter
from convit_jax.data.images.transforms import EvalTransform, TrainTransform
from convit_jax.data.order import EpochOrder
from convit_jax.data.reading import EXIF_ROTATIONS, Images, ReadResult, Row, RowReader
from convit_jax.data.workers import WorkerPool
from convit_jax.errors import InputError, RunError, nearest

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class LoaderOptions:
    """How examples are read on this machine.

    Attributes:
        num_workers: number of processes that read and augment; 0 to read in a thread of this
            process; -1 for the number of cores.
        prefetch_batches: number of batches prepared ahead.
        max_broken: share of the examples that may be broken.
        exif_rotation: whether images are rotated by their EXIF orientation: `honour`, `ignore`, or
            `auto`, which honours it for images in folders and ignores it for TFDS datasets.
    """

    num_workers: int = 0
    prefetch_batches: int = 2
    max_broken: float = 0.0
    exif_rotation: str = "auto"

    def __post_init__(self) -> None:
        if self.exif_rotation not in EXIF_ROTATIONS:
            expected = nearest(self.exif_rotation, EXIF_ROTATIONS)
            raise InputError(f"exif_rotation='{self.exif_rotation}': {expected}")

    def rotates(self, images: Images) -> bool:
        """Return whether these images are rotated by their EXIF orientation."""
        if self.exif_rotation == "auto":
            return getattr(images, "rotates_by_exif", True)
        return self.exif_rotation == "honour"

    @property
    def num_processes(self) -> int:
        """Number of worker processes to start."""
        if self.num_workers >= 0:
            return self.num_workers
        # The cores available to this process, if the system provides that number.
        return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def train_batches(
    images: Images,
    order: EpochOrder,
    transform: TrainTransform,
    *,
    start_step: int,
    num_steps: int,
    rows: Sequence[int] | None = None,
    options: LoaderOptions = LoaderOptions(),
    broken_counter: BrokenImageCounter | None = None,
) -> Iterator[Batch]:
    """Return this process's rows of the global batches of steps `start_step` to `num_steps` - 1.

    A batch depends on the order's seed and its step alone: not on `start_step`, on the number of
    processes or on `options`. Starting at any step costs the same.

    Args:
        images: the examples.
        order: the order of the examples.
        transform: augmentation of the images.
        start_step, num_steps: the first step, and one past the last.
        rows: which rows of each batch are this process's, ascending; None for all.
        options: how examples are read on this machine.
        broken_counter: counts the broken images; None for a new counter.

    Raises:
        RunError: more images are broken than allowed.
    """
    local_rows = range(order.batch_size) if rows is None else rows
    shape = (*transform.image_size, transform.channels)
    reader = RowReader(images, transform, shape, order.seed, options.rotates(images))

    def rows_of_step(step: int) -> list[Row]:
        return [order.locate(step, row) for row in local_rows]

    counter = broken_counter or BrokenImageCounter(images, options.max_broken)
    return _batches(reader, rows_of_step, range(start_step, num_steps), options, counter)


def num_eval_batches(num_examples: int, batch_size: int) -> int:
    """Return the number of batches that contain every example once, the last one padded."""
    return -(-num_examples // batch_size)


def eval_batches(
    images: Images,
    batch_size: int,
    transform: EvalTransform,
    *,
    rows: Sequence[int] | None = None,
    options: LoaderOptions = LoaderOptions(),
    broken_counter: BrokenImageCounter | None = None,
) -> Iterator[Batch]:
    """Return this process's rows of batches that contain every example once, in order.

    Rows that pad the last batch and rows of broken images have `mask` 0. `rows`, `options` and
    `broken_counter` are as in `train_batches`.

    Raises:
        RunError: more images are broken than allowed.
    """
    local_rows, num_examples = range(batch_size) if rows is None else rows, len(images)
    shape = (*transform.image_size, transform.channels)
    reader = RowReader(images, transform, shape, None, options.rotates(images))

    def rows_of_step(step: int) -> list[Row]:
        examples = (step * batch_size + row for row in local_rows)
        return [Row(example if example < num_examples else -1) for example in examples]

    counter = broken_counter or BrokenImageCounter(images, options.max_broken)
    steps = range(num_eval_batches(num_examples, batch_size))
    return _batches(reader, rows_of_step, steps, options, counter)


def _batches(
    reader: RowReader,
    rows_of_step: Callable[[int], Sequence[Row]],
    steps: range,
    options: LoaderOptions,
    counter: BrokenImageCounter,
) -> Iterator[Batch]:
    """Yield the batches of some steps, prepared ahead; those of an evaluation have a mask."""
    evaluating = reader.seed is None

    def read_in_this_process(rows: Sequence[Row]) -> tuple[np.ndarray, ReadResult]:
        images = np.empty((len(rows), *reader.image_shape), np.uint8)
        return images, reader.read(rows, images)

    with contextlib.ExitStack() as stack:
        read = read_in_this_process
        if options.num_processes:
            read = stack.enter_context(WorkerPool(reader, options.num_processes)).read
        batches = (
            grain.MapDataset.range(steps.start, steps.stop)
            .map(rows_of_step)
            .map(read)
            .to_iter_dataset(
                grain.ReadOptions(
                    # Several threads keep the worker processes busy between batches; without
                    # workers, threads would only wait for each other.
                    num_threads=options.prefetch_batches if options.num_processes else 1,
                    prefetch_buffer_size=options.prefetch_batches,
                )
            )
        )
        for images, result in batches:
            counter.add(result.broken)
            batch = {"image": images, "label": result.labels}
            if not evaluating and not result.mask.all():
                first = result.broken[0]
                raise RunError(
                    f"cannot read {first.name}: {first.reason}; nor any image near it that could "
                    "replace it"
                )
            yield batch | {"mask": result.mask} if evaluating else batch
