"""Step → global batch: what each process reads, augments and hands to its devices.

A batch is a dictionary of NumPy arrays, this process's rows of the global batch: `image` uint8
[rows, height, width, channels], `label` int32 [rows] and, in evaluation, `mask` float32 [rows].
Which rows those are is said by the caller, who knows the devices; what is in them is not changed by
it, so the global batch of a step is the same for any number of processes.
"""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from convit_jax.data.health import Health
from convit_jax.data.images.transforms import EvalTransform, TrainTransform
from convit_jax.data.order import EpochOrder
from convit_jax.data.reading import EXIF_ROTATIONS, Images, Row, RowReader, RowsRead
from convit_jax.data.workers import WorkerPool
from convit_jax.errors import InputError, RunError, nearest

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Reading:
    """How the reading is spread over this machine.

    Attributes:
        num_workers: processes that read and augment; 0 for a thread of this one; -1 for as many
            as there are cores.
        prefetch_batches: batches prepared ahead.
        max_broken: share of the examples that may be broken.
        exif_rotation: whether images are turned upright as their metadata say: `honour`, `ignore`
            or `auto`, those of folders and not those of TFDS.
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
        """Whether these images are turned upright."""
        if self.exif_rotation == "auto":
            return getattr(images, "rotates_by_exif", True)
        return self.exif_rotation == "honour"

    @property
    def processes(self) -> int:
        """Worker processes to start."""
        if self.num_workers >= 0:
            return self.num_workers
        # The cores that this process may use, where the system tells them apart.
        return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def train_batches(
    images: Images,
    order: EpochOrder,
    transform: TrainTransform,
    *,
    start_step: int,
    num_steps: int,
    rows: Sequence[int] | None = None,
    reading: Reading = Reading(),
    health: Health | None = None,
) -> Iterator[Batch]:
    """This process's rows of the global batches of steps `start_step` to `num_steps` - 1.

    A batch depends on the order's seed and its step alone: not on `start_step`, on the number of
    processes or on how the reading is spread. Reaching any `start_step` costs the same.

    Args:
        images: the examples.
        order: which of them stands where.
        transform: of images.
        start_step, num_steps: the first step, and one past the last.
        rows: which rows of each batch are this process's, ascending; None for all.
        reading: how the reading is spread over this machine.
        health: where broken images are counted; None for a count of this process's own.

    Raises:
        RunError: more of the images are broken than allowed.
    """
    local_rows = range(order.batch_size) if rows is None else rows
    shape = (*transform.image_size, transform.channels)
    reader = RowReader(images, transform, shape, order.seed, reading.rotates(images))

    def located(step: int) -> list[Row]:
        return [order.locate(step, row) for row in local_rows]

    health = health or Health(images, reading.max_broken)
    return _batches(reader, located, range(start_step, num_steps), reading, health)


def num_eval_batches(num_examples: int, batch_size: int) -> int:
    """Batches that hold every example once, the last one padded."""
    return -(-num_examples // batch_size)


def eval_batches(
    images: Images,
    batch_size: int,
    transform: EvalTransform,
    *,
    rows: Sequence[int] | None = None,
    reading: Reading = Reading(),
    health: Health | None = None,
) -> Iterator[Batch]:
    """This process's rows of batches that hold every example once, in order.

    The rows that fill up the last batch, and those of broken images, have `mask` 0. `rows` and
    `health` are as in `train_batches`.

    Raises:
        RunError: more of the images are broken than allowed.
    """
    local_rows, count = range(batch_size) if rows is None else rows, len(images)
    shape = (*transform.image_size, transform.channels)
    reader = RowReader(images, transform, shape, None, reading.rotates(images))

    def located(step: int) -> list[Row]:
        return [
            Row(i if i < count else -1) for i in (step * batch_size + row for row in local_rows)
        ]

    health = health or Health(images, reading.max_broken)
    return _batches(reader, located, range(num_eval_batches(count, batch_size)), reading, health)


def _batches(
    reader: RowReader,
    rows: Callable[[int], Sequence[Row]],
    steps: range,
    reading: Reading,
    health: Health,
) -> Iterator[Batch]:
    """The batches of some steps, prepared ahead; those of an evaluation have a mask."""
    evaluating = reader.seed is None
    with contextlib.ExitStack() as stack:
        if reading.processes:
            read = stack.enter_context(WorkerPool(reader, reading.processes)).read
        else:
            read = _reading_here(reader)
        batches = (
            grain.MapDataset.range(steps.start, steps.stop)
            .map(rows)
            .map(read)
            .to_iter_dataset(
                grain.ReadOptions(
                    # Workers are kept busy over the end of a batch; threads would only wait
                    # for one another.
                    num_threads=reading.prefetch_batches if reading.processes else 1,
                    prefetch_buffer_size=reading.prefetch_batches,
                )
            )
        )
        for images, found in batches:
            health.count(found.broken)
            batch = {"image": images, "label": found.labels}
            if not evaluating and not found.mask.all():
                first = found.broken[0]
                raise RunError(
                    f"cannot read {first.name}: {first.reason}; nor any image near it that could "
                    "take its place"
                )
            yield batch | {"mask": found.mask} if evaluating else batch


def _reading_here(reader: RowReader) -> Callable[[Sequence[Row]], tuple[np.ndarray, RowsRead]]:
    """As `WorkerPool.read`, in the calling thread."""

    def read(rows: Sequence[Row]) -> tuple[np.ndarray, RowsRead]:
        images = np.empty((len(rows), *reader.image_shape), np.uint8)
        return images, reader.read(rows, images)

    return read
