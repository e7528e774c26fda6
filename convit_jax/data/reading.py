"""Rows of batches → pixels and labels: what a reading thread or worker process does."""

import dataclasses
import errno
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from convit_jax.data.images.decoding import decode
from convit_jax.errors import MachineError, RunError, first_line, machine_fault

# Whether images are turned as their metadata say: as is usual for where they come from, or not.
EXIF_ROTATIONS = ("auto", "honour", "ignore")
# How many neighbours of a broken image are tried in its place.
_NEIGHBOURS = 32
# How many others must be unreadable, too, for an I/O error to be the storage's and not the file's.
_OTHERS = 4


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
        rotate: whether images are turned upright as their metadata say.
    """

    images: Images
    transform: Callable[..., np.ndarray]
    image_shape: tuple[int, int, int]
    seed: int | None
    rotate: bool = True

    def read(self, rows: Sequence[Row], out: np.ndarray) -> RowsRead:
        """Fills `out`, uint8 [rows, H, W, channels].

        In training a broken image is replaced by its next neighbour that is whole; in evaluation
        its row is masked out, as in training where no neighbour is whole.

        Raises:
            MachineError: the machine, not what it holds, keeps an image from being read.
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
            # Whatever a file or record holds and a library makes of it: this is where it ends.
            try:
                encoded, label = self.images[here]
                return decode(encoded, self.image_shape[2], self.rotate), label
            except RunError:
                raise
            except Exception as error:
                name, fault = self.images.describe(here), machine_fault(error)
                if fault and not self._is_bad_sector(error, here):
                    raise MachineError(f"{name}: {fault}") from error
                broken[here] = Broken(here, name, first_line(error))
        return None

    def _is_bad_sector(self, error: Exception, here: int) -> bool:
        """Whether an I/O error is one image's: others, near and far, can be read."""
        if not (isinstance(error, OSError) and error.errno == errno.EIO):
            return False
        count = len(self.images)
        for other in {(here + 1 + far * count // _OTHERS) % count for far in range(_OTHERS)}:
            try:
                self.images[other]
            except Exception:
                continue  # no proof that the storage works
            return True
        return False


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
