"""Which example stands where: a pure function of the seed and the position in the run."""

import dataclasses
import functools

import numpy as np
from grain.experimental import index_shuffle

from convit_jax.data.reading import Row
from convit_jax.errors import InputError

# Grain shuffles 2^16 indices and looks again until one is small enough: a thousand times, half a
# millisecond, for sixty examples, but not worth mentioning for many. Few are permuted as a whole.
_FEW = 1024


@dataclasses.dataclass(frozen=True)
class EpochOrder:
    """The order of a training run, shuffled anew each epoch.

    An epoch is as many whole batches as the examples fill; the few left over are others in each
    epoch. With repeated augmentation (Hoffer et al. 2020; DeiT's recipe has three views) it has as
    many rows as before, so it sees the first third of the shuffled examples, each in three views.
    Any position is found at the same small cost: nothing is kept between positions.

    Attributes:
        num_examples: examples of the dataset.
        batch_size: rows of a global batch.
        seed: the run's seed.
        repeats: views of an example, near each other in a batch.
    """

    num_examples: int
    batch_size: int
    seed: int
    repeats: int = 1

    def __post_init__(self) -> None:
        if self.batch_size > self.num_examples:
            raise InputError(
                f"config.batch_size={self.batch_size} is more than the {self.num_examples} "
                f"training examples: expected at most {self.num_examples}"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return self.num_examples // self.batch_size

    def locate(self, step: int, row: int) -> Row:
        """What a row of a step's global batch holds."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        position = step_in_epoch * self.batch_size + row
        view = 0
        if self.repeats > 1:
            layout = views_layout(self.repeats)
            block, place = divmod(position, len(layout))
            image, view = layout[place]
            position = block * (len(layout) // self.repeats) + image
        index = _shuffled(position, self.num_examples, _epoch_seed(self.seed, epoch))
        return Row(index, epoch, view)


@functools.cache
def views_layout(repeats: int) -> tuple[tuple[int, int], ...]:
    """(image, view) of each row of a block of images with all their views.

    Neighbouring rows are mixed with each other (`mixing.mix`), so they are never two views of one
    image, and no two images are neighbours twice: in view v image i stands beside i XOR (v + 1).
    A block is small, so that one process reads all views of an image and decodes it once.
    """
    images = 1 << repeats.bit_length()
    return tuple(
        (image, view)
        for view in range(repeats)
        for i in range(images)
        if i < i ^ (view + 1)
        for image in (i, i ^ (view + 1))
    )


def _shuffled(position: int, count: int, seed: int) -> int:
    """Which of `count` examples a permutation puts at a position."""
    if count < _FEW:
        return int(_permutation(count, seed)[position])
    return index_shuffle(position, max_index=count - 1, seed=seed, rounds=4)


@functools.lru_cache(maxsize=16)
def _permutation(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(count)


@functools.lru_cache(maxsize=16)
def _epoch_seed(seed: int, epoch: int) -> int:
    """32 bits that have nothing in common between neighbouring epochs or seeds."""
    return int(np.random.SeedSequence((seed & (2**64 - 1), epoch)).generate_state(1)[0])
