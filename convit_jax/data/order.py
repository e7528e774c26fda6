"""Which example stands where: a pure function of the seed and the position in the run."""

import dataclasses
import functools

import numpy as np
from grain.experimental import index_shuffle

from convit_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class EpochOrder:
    """The order of a training run, shuffled anew each epoch.

    An epoch is as many whole batches as the examples fill; the few left over are others in each
    epoch. Any position is found at the same small cost: nothing is kept between positions.

    Attributes:
        num_examples: examples of the dataset.
        batch_size: examples of a global batch.
        seed: the run's seed.
    """

    num_examples: int
    batch_size: int
    seed: int

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

    def locate(self, step: int, row: int) -> tuple[int, int]:
        """(epoch, index of the example) of a row of a step's global batch."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        position = step_in_epoch * self.batch_size + row
        index = index_shuffle(
            position, max_index=self.num_examples - 1, seed=_epoch_seed(self.seed, epoch), rounds=4
        )
        return epoch, index


@functools.lru_cache(maxsize=16)
def _epoch_seed(seed: int, epoch: int) -> int:
    """32 bits that have nothing in common between neighbouring epochs or seeds."""
    return int(np.random.SeedSequence((_unsigned(seed), epoch)).generate_state(1)[0])


def example_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The random numbers of one example in one epoch: a function of its arguments alone."""
    # A counter-based generator: its key is its whole state, so that making one is cheap.
    key = np.array([_unsigned(seed), epoch << 40 | index], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def _unsigned(seed: int) -> int:
    return seed & (2**64 - 1)
