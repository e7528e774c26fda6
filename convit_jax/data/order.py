"""The order of the examples: a pure function of the seed and the position in the run."""

import collections
import dataclasses
import functools
import itertools

import numpy as np
from grain.experimental import index_shuffle

from convit_jax.data.reading import Row
from convit_jax.errors import InputError

# Below the first number of examples NumPy permutes them, from it on Grain's index_shuffle. Below
# the second, which is the fewest indices that index_shuffle permutes, whole permutations are
# computed and cached: it repeats until an index is in range, for 1,500 examples 44 times.
_MIN_FOR_INDEX_SHUFFLE, _MIN_SHUFFLED = 1024, 2**16


@dataclasses.dataclass(frozen=True)
class EpochOrder:
    """The order of a training run, reshuffled each epoch.

    An epoch consists of the whole batches that the examples fill; the few remaining examples differ
    between epochs. With repeated augmentation (Hoffer et al. 2020; DeiT's recipe has three views)
    an epoch has the same number of rows, so it contains the first third of the shuffled examples,
    each in three views. There is no state: any position can be looked up at the same small cost.

    Fewer examples than a batch are refused, unless `fill_batches`: then each batch continues the
    epochs where the one before ended, and a batch is counted as an epoch.

    Attributes:
        num_examples: number of examples in the dataset.
        batch_size: number of rows in a global batch.
        seed: the run's seed.
        repeats: number of views of each example, which are near each other in a batch.
        fill_batches: let a batch have examples of several epochs, if they are fewer than a batch.
    """

    num_examples: int
    batch_size: int
    seed: int
    repeats: int = 1
    fill_batches: bool = False

    def __post_init__(self) -> None:
        if self.batch_size > self.num_examples and not self.fill_batches:
            raise InputError(
                f"config.batch_size={self.batch_size} is more than the {self.num_examples} "
                f"training examples: expected at most {self.num_examples}"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Number of whole batches in an epoch, at least 1."""
        return max(1, self.num_examples // self.batch_size)

    def locate(self, step: int, row: int) -> Row:
        """Return the content of a row of a step's global batch."""
        position = step * self.batch_size + row
        whole_batches = self.batch_size <= self.num_examples
        epoch, view = 0, 0
        if whole_batches:
            epoch, position = divmod(position, self.steps_per_epoch * self.batch_size)
        if self.repeats > 1:
            layout = views_layout(self.repeats)
            block, offset = divmod(position, len(layout))
            image, view = layout[offset]
            position = block * (len(layout) // self.repeats) + image
        if not whole_batches:
            epoch, position = divmod(position, self.num_examples)
        index = _shuffled_index(position, self.num_examples, _epoch_seed(self.seed, epoch))
        return Row(index, epoch, view)


@functools.cache
def views_layout(repeats: int) -> tuple[tuple[int, int], ...]:
    """Return (image, view) of each row of a block of images with all their views.

    Rows 0 and 1, 2 and 3, and so on are mixed with each other (`mixing.mix`), so they are never two
    views of one image, and no two images are in such a pair twice.

    Hosts read contiguous ranges of a batch's rows, usually a power of two of them, and decode an
    image once for all its views in that range. So a block consists of `repeats` units of 2^k rows.
    A unit has all views of its own images, and one view each of a few images shared by all units:
    for three views it has 16 rows, of five own images and of one that the three units share.
    """
    unit_size = 2
    while unit_size // repeats <= repeats:
        unit_size *= 2
    num_own, num_shared = divmod(unit_size, repeats)
    numbers: dict[int, int] = {}
    num_views: collections.Counter[int] = collections.Counter()
    layout = []
    for unit in range(repeats):
        own = range(unit * num_own, (unit + 1) * num_own)
        for image in itertools.chain.from_iterable(_unit_pairs(own, num_shared, repeats)):
            # Images are numbered as they occur, so that short runs use the first numbers alone.
            layout.append((numbers.setdefault(image, len(numbers)), num_views[image]))
            num_views[image] += 1
    return tuple(layout)


def _unit_pairs(own: range, num_shared: int, repeats: int) -> list[tuple[int, int]]:
    """Return pairs of images: each own image in `repeats` of them, each shared image in one.

    A simple graph with these degrees, by the construction of Havel and Hakimi. The shared images
    have negative numbers.
    """
    pairs = [(own[i], -1 - i) for i in range(num_shared)]
    remaining = {image: repeats - (i < num_shared) for i, image in enumerate(own)}
    while remaining:
        image = max(remaining, key=remaining.__getitem__)
        degree = remaining.pop(image)
        partners = sorted(remaining, key=remaining.__getitem__, reverse=True)[:degree]
        pairs += [(image, partner) for partner in partners]
        for partner in partners:
            remaining[partner] -= 1
    # In an order in which a part of a unit has few images.
    return sorted(pairs, key=lambda pair: (max(pair), pair))


@functools.lru_cache(maxsize=4096)  # for the other views of an image, which are near
def _shuffled_index(position: int, num_examples: int, seed: int) -> int:
    """Return the example at a position of a random permutation."""
    if num_examples < _MIN_SHUFFLED:
        return int(_permutation(num_examples, seed)[position])
    return index_shuffle(position, max_index=num_examples - 1, seed=seed, rounds=4)


@functools.lru_cache(maxsize=16)
def _permutation(num_examples: int, seed: int) -> np.ndarray:
    if num_examples < _MIN_FOR_INDEX_SHUFFLE:
        return np.random.default_rng(seed).permutation(num_examples)
    last = _MIN_SHUFFLED - 1
    table = np.asarray(
        [index_shuffle(index, max_index=last, seed=seed, rounds=4) for index in range(last + 1)]
    )
    shuffled = table[:num_examples]
    while (outside := shuffled >= num_examples).any():
        shuffled[outside] = table[shuffled[outside]]
    return shuffled


@functools.lru_cache(maxsize=16)
def _epoch_seed(seed: int, epoch: int) -> int:
    """Return 32 bits that are uncorrelated between neighbouring epochs or seeds."""
    return int(np.random.SeedSequence((seed & (2**64 - 1), epoch)).generate_state(1)[0])
