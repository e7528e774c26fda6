"""The order of the examples: a pure function of the seed and the position in the run."""

import dataclasses
import functools

import numpy as np
from grain.experimental import index_shuffle

from convit_jax.data.reading import Row
from convit_jax.errors import InputError

# Below this number of examples, the whole permutation is computed. Grain's index_shuffle permutes
# 2^16 indices and repeats until one is in range: for sixty examples that is a thousand times, or
# half a millisecond; for many examples it is negligible.
_MIN_FOR_INDEX_SHUFFLE = 1024


@dataclasses.dataclass(frozen=True)
class EpochOrder:
    """The order of a training run, reshuffled each epoch.

    An epoch consists of the whole batches that the examples fill; the few remaining examples differ
    between epochs. With repeated augmentation (Hoffer et al. 2020; DeiT's recipe has three views)
    an epoch has the same number of rows, so it contains the first third of the shuffled examples,
    each in three views. There is no state: any position can be looked up at the same small cost.

    Attributes:
        num_examples: number of examples in the dataset.
        batch_size: number of rows in a global batch.
        seed: the run's seed.
        repeats: number of views of each example, which are near each other in a batch.
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
        """Number of whole batches in an epoch."""
        return self.num_examples // self.batch_size

    def locate(self, step: int, row: int) -> Row:
        """Return the content of a row of a step's global batch."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        position = step_in_epoch * self.batch_size + row
        view = 0
        if self.repeats > 1:
            layout = views_layout(self.repeats)
            block, offset = divmod(position, len(layout))
            image, view = layout[offset]
            position = block * (len(layout) // self.repeats) + image
        index = _shuffled_index(position, self.num_examples, _epoch_seed(self.seed, epoch))
        return Row(index, epoch, view)


@functools.cache
def views_layout(repeats: int) -> tuple[tuple[int, int], ...]:
    """Return (image, view) of each row of a block of images with all their views.

    Neighbouring rows are mixed with each other (`mixing.mix`), so they are never two views of one
    image, and no two images are neighbours twice: in view v, image i is next to image
    i XOR (v + 1). A block is small, so that one process reads all views of an image and decodes it
    once.
    """
    num_images = 1 << repeats.bit_length()
    return tuple(
        (image, view)
        for view in range(repeats)
        for i in range(num_images)
        if i < i ^ (view + 1)
        for image in (i, i ^ (view + 1))
    )


def _shuffled_index(position: int, num_examples: int, seed: int) -> int:
    """Return the example at a position of a random permutation."""
    if num_examples < _MIN_FOR_INDEX_SHUFFLE:
        return int(_permutation(num_examples, seed)[position])
    return index_shuffle(position, max_index=num_examples - 1, seed=seed, rounds=4)


@functools.lru_cache(maxsize=16)
def _permutation(num_examples: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(num_examples)


@functools.lru_cache(maxsize=16)
def _epoch_seed(seed: int, epoch: int) -> int:
    """Return 32 bits that are uncorrelated between neighbouring epochs or seeds."""
    return int(np.random.SeedSequence((seed & (2**64 - 1), epoch)).generate_state(1)[0])
