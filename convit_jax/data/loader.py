"""Step → global batch: what each process reads, augments and hands to its devices.

A batch is a dictionary of NumPy arrays, this process's rows of the global batch: `image` uint8
[rows, height, width, channels], `label` int32 [rows] and, in evaluation, `mask` float32 [rows].
Which rows those are is said by the caller, who knows the devices; what is in them is not changed by
it, so the global batch of a step is the same for any number of processes.
"""

import contextlib
import dataclasses
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from convit_jax.data.order import EpochOrder
from convit_jax.data.reading import Broken, Images, Row, RowReader, RowsRead
from convit_jax.data.transforms import EvalTransform, TrainTransform
from convit_jax.data.workers import WorkerPool
from convit_jax.errors import RunError

log = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Reading:
    """How the reading is spread over this machine.

    Attributes:
        num_workers: processes that read and augment; 0 for a thread of this one; -1 for as many
            as there are cores.
        prefetch_batches: batches prepared ahead.
        max_broken: share of the examples that may be broken.
    """

    num_workers: int = 0
    prefetch_batches: int = 2
    max_broken: float = 0.0

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

    Raises:
        RunError: more of the images are broken than allowed.
    """
    mine = range(order.batch_size) if rows is None else rows
    shape = (*transform.image_size, transform.channels)
    reader = RowReader(images, transform, shape, order.seed)

    def located(step: int) -> list[Row]:
        return [order.locate(step, row) for row in mine]

    return _batches(reader, located, range(start_step, num_steps), reading, masked=False)


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
) -> Iterator[Batch]:
    """This process's rows of batches that hold every example once, in order.

    The rows that fill up the last batch, and those of broken images, have `mask` 0. `rows` are as
    in `train_batches`.

    Raises:
        RunError: more of the images are broken than allowed.
    """
    mine, count = range(batch_size) if rows is None else rows, len(images)
    reader = RowReader(images, transform, (*transform.image_size, transform.channels), None)

    def located(step: int) -> list[Row]:
        return [Row(i if i < count else -1) for i in (step * batch_size + row for row in mine)]

    return _batches(
        reader, located, range(num_eval_batches(count, batch_size)), reading, masked=True
    )


def _batches(
    reader: RowReader,
    rows: Callable[[int], Sequence[Row]],
    steps: range,
    reading: Reading,
    *,
    masked: bool,
) -> Iterator[Batch]:
    """The batches of some steps, prepared ahead."""
    health = _Health(len(reader.images), reading.max_broken)
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
            yield batch | {"mask": found.mask} if masked else batch


def _reading_here(reader: RowReader) -> Callable[[Sequence[Row]], tuple[np.ndarray, RowsRead]]:
    """As `WorkerPool.read`, in the calling thread."""

    def read(rows: Sequence[Row]) -> tuple[np.ndarray, RowsRead]:
        images = np.empty((len(rows), *reader.image_shape), np.uint8)
        return images, reader.read(rows, images)

    return read


class _Health:
    """Counts the broken images, each once, and says when they are too many."""

    def __init__(self, num_images: int, max_share: float) -> None:
        self._allowed = int(num_images * max_share)
        self._num_images = num_images
        self._seen: set[int] = set()

    def count(self, broken: Sequence[Broken]) -> None:
        """Raises RunError when there are more than allowed."""
        for image in broken:
            if image.index in self._seen:
                continue
            self._seen.add(image.index)
            told = f"cannot read {image.name}: {image.reason}"
            if len(self._seen) > self._allowed:
                raise RunError(
                    f"{told}; that is broken image number {len(self._seen)} of {self._num_images} "
                    f"and max_broken allows {self._allowed}"
                )
            log.warning("%s (%d of at most %d)", told, len(self._seen), self._allowed)
