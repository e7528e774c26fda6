"""Step → global batch: what each process reads, augments and hands to its devices.

A batch is a dictionary of NumPy arrays, this process's rows of the global batch: `image` uint8
[rows, height, width, channels], `label` int32 [rows] and, in evaluation, `mask` float32 [rows].
Process p of P holds rows p·B/P to (p + 1)·B/P - 1, so the global batch of a step is the same for
any number of processes.
"""

import dataclasses
from collections.abc import Callable, Iterator

import grain
import numpy as np
from absl import flags

from convit_jax.data.order import EpochOrder, example_generator
from convit_jax.data.sources import Source
from convit_jax.data.transforms import EvalTransform, TrainTransform
from convit_jax.errors import InputError

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Shard:
    """This process's part of every global batch: process `index` of `count`."""

    index: int = 0
    count: int = 1

    def rows(self, batch_size: int) -> int:
        """Rows of a global batch that the process holds."""
        if batch_size % self.count:
            lower = batch_size - batch_size % self.count
            raise InputError(
                f"a batch of {batch_size} does not divide among {self.count} processes: the "
                f"nearest that do are {lower or self.count} and {lower + self.count}"
            )
        return batch_size // self.count


@dataclasses.dataclass(frozen=True)
class Reading:
    """How the reading is spread over this machine.

    Attributes:
        num_workers: processes that read and augment; 0 for this one alone.
        num_threads: threads in each of them.
        prefetch_batches: batches that each prepares ahead.
    """

    num_workers: int = 0
    num_threads: int = 2
    prefetch_batches: int = 4


@dataclasses.dataclass(frozen=True)
class _TrainRow:
    """Position in this process's stream of training rows → example."""

    source: Source
    order: EpochOrder
    transform: TrainTransform
    shard: Shard

    def __call__(self, position: int) -> dict[str, np.ndarray]:
        rows = self.shard.rows(self.order.batch_size)
        step, row = divmod(position, rows)
        epoch, index = self.order.locate(step, self.shard.index * rows + row)
        encoded, label = self.source[index]
        image = self.transform(encoded, example_generator(self.order.seed, epoch, index))
        return {"image": image, "label": np.int32(label)}


@dataclasses.dataclass(frozen=True)
class _EvalRow:
    """Position in this process's stream of evaluation rows → example, or padding past the last."""

    source: Source
    batch_size: int
    transform: EvalTransform
    shard: Shard

    def __call__(self, position: int) -> dict[str, np.ndarray]:
        rows = self.shard.rows(self.batch_size)
        step, row = divmod(position, rows)
        index = step * self.batch_size + self.shard.index * rows + row
        if index >= len(self.source):
            blank = np.zeros((*self.transform.image_size, self.transform.channels), np.uint8)
            return {"image": blank, "label": np.int32(0), "mask": np.float32(0)}
        encoded, label = self.source[index]
        return {
            "image": self.transform(encoded),
            "label": np.int32(label),
            "mask": np.float32(1),
        }


def train_batches(
    source: Source,
    order: EpochOrder,
    transform: TrainTransform,
    *,
    start_step: int,
    num_steps: int,
    shard: Shard = Shard(),
    reading: Reading = Reading(),
) -> Iterator[Batch]:
    """This process's rows of the global batches of steps `start_step` to `num_steps` - 1.

    A batch depends on the order's seed and its step alone: not on `start_step`, on the number of
    processes or on how the reading is spread. Reaching any `start_step` costs the same.

    Raises:
        InputError: the batch does not divide among the processes.
    """
    row = _TrainRow(source, order, transform, shard)
    rows = shard.rows(order.batch_size)
    return _batches(row, start_step * rows, num_steps * rows, rows, reading)


def num_eval_batches(num_examples: int, batch_size: int) -> int:
    """Batches that hold every example once, the last one padded."""
    return -(-num_examples // batch_size)


def eval_batches(
    source: Source,
    batch_size: int,
    transform: EvalTransform,
    *,
    shard: Shard = Shard(),
    reading: Reading = Reading(),
) -> Iterator[Batch]:
    """This process's rows of batches that hold every example once, in order.

    The rows that fill up the last batch have `mask` 0.

    Raises:
        InputError: the batch does not divide among the processes.
    """
    row = _EvalRow(source, batch_size, transform, shard)
    rows = shard.rows(batch_size)
    return _batches(row, 0, num_eval_batches(len(source), batch_size) * rows, rows, reading)


def _batches(
    row: Callable[[int], dict[str, np.ndarray]], start: int, stop: int, rows: int, reading: Reading
) -> Iterator[Batch]:
    """Rows `start` to `stop` - 1 in batches of `rows`, read ahead by threads or processes."""
    dataset = grain.MapDataset.range(start, stop).map(row).batch(rows)
    batches = dataset.to_iter_dataset(
        grain.ReadOptions(
            num_threads=reading.num_threads,
            prefetch_buffer_size=max(reading.prefetch_batches, reading.num_threads),
        )
    )
    if reading.num_workers:
        if not flags.FLAGS.is_parsed():
            # Grain's workers read absl flags, which only a command's launcher has parsed.
            flags.FLAGS.mark_as_parsed()
        batches = batches.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=reading.num_workers,
                per_worker_buffer_size=reading.prefetch_batches,
            )
        )
    return iter(batches)
