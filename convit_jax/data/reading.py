"""Rows of batches → pixels and labels: what a reading thread or worker process does."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from convit_jax.data.decoding import BrokenImageError, decode

# How many neighbours of a broken image are tried in its place.
_NEIGHBOURS = 32


class Row(NamedTuple):
    """What one row of a batch holds: an example, in an epoch, in one of its views.

    An index of -1 is a row of padding.
    """

    index: int
    epoch: int = 0
    view: int = 0


class Images(Protocol):
    """Random access to labelled, encoded images."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[bytes, int | np.ndarray]: ...

    @property
    def label_shape(self) -> tuple[int, ...]:
        """Of one image's label."""
        ...

    def describe(self, index: int) -> str:
        """The image's name, for messages."""
        ...


class Broken(NamedTuple):
    """An image that could not be read: which, what it is called, and why."""

    index: int
    name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class RowsRead:
    """What `RowReader.read` found, besides the pixels.

    Attributes:
        labels: int32 [rows], or of images with several [rows, classes].
        mask: float32 [rows], 0 where a row holds no example.
        broken: the images that could not be read.
    """

    labels: np.ndarray
    mask: np.ndarray
    broken: tuple[Broken, ...]


@dataclasses.dataclass(frozen=True)
class RowReader:
    """Reads, decodes and augments rows; a pure function of them, in whatever process.

    Attributes:
        images: the examples.
        transform: (pixels, random numbers) → uint8 [H, W, channels], or for evaluation
            pixels → the same.
        image_shape: (H, W, channels).
        seed: with a row, decides its random numbers; None for evaluation, which has none.
    """

    images: Images
    transform: Callable[..., np.ndarray]
    image_shape: tuple[int, int, int]
    seed: int | None

    def read(self, rows: Sequence[Row], out: np.ndarray) -> RowsRead:
        """Fills `out`, uint8 [rows, H, W, channels].

        In training a broken image is replaced by its next neighbour that is whole; in evaluation
        its row is masked out.
        """
        labels = np.zeros((len(rows), *self.images.label_shape), np.int32)
        mask = np.zeros(len(rows), np.float32)
        broken: dict[int, Broken] = {}
        for index, places in _by_index(rows):
            found = self._find(index, broken) if index >= 0 else None
            for place in places:
                if found is None:
                    out[place] = 0
                    continue
                pixels, labels[place] = found
                mask[place] = 1.0
                out[place] = self._view(pixels, rows[place])
        return RowsRead(labels, mask, tuple(broken.values()))

    def _view(self, pixels: np.ndarray, row: Row) -> np.ndarray:
        if self.seed is None:
            return self.transform(pixels)
        return self.transform(pixels, view_generator(self.seed, row))

    def _find(
        self, index: int, broken: dict[int, Broken]
    ) -> tuple[np.ndarray, int | np.ndarray] | None:
        """Pixels and label of an example, or of a neighbour where it is broken, or None."""
        attempts = 1 if self.seed is None else min(_NEIGHBOURS, len(self.images))
        for near in range(index, index + attempts):
            here = near % len(self.images)
            try:
                encoded, label = self.images[here]
                return decode(encoded, self.image_shape[2]), label
            except (BrokenImageError, OSError, ValueError) as error:
                broken[here] = Broken(here, self.images.describe(here), str(error))
        return None


def _by_index(rows: Sequence[Row]) -> Iterator[tuple[int, list[int]]]:
    """Each example with the rows that show it: its views share one decoding."""
    places: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(row.index, []).append(place)
    yield from places.items()


def view_generator(seed: int, row: Row) -> np.random.Generator:
    """The random numbers of one view of one example in one epoch: a function of these alone."""
    # A counter-based generator: its key is its whole state, so that making one is cheap.
    key = np.array([seed & (2**64 - 1), row.epoch << 40 | row.index], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, row.view]))
