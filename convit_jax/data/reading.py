"""Rows of batches → pixels and labels: the work of a reading thread or worker process."""

import dataclasses
import errno
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from convit_jax.data.images.decoding import decode
from convit_jax.errors import MachineError, RunError, first_line, machine_fault

# Whether images are rotated by their EXIF orientation: `auto` depends on the kind of source.
EXIF_ROTATIONS = ("auto", "honour", "ignore")
# How many images, from a broken one on, are tried in its place.
_MAX_REPLACEMENTS = 32
# How many other images are read to tell an I/O error of one file from a failure of the storage.
_NUM_PROBES = 4


class Row(NamedTuple):
    """The content of one row of a batch: an example, in an epoch, in one of its views.

    An example of -1 is a row of padding.
    """

    example: int
    epoch: int = 0
    view: int = 0


class Images(Protocol):
    """Random access to labelled, encoded images."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[bytes, int | np.ndarray]: ...

    @property
    def label_shape(self) -> tuple[int, ...]:
        """The shape of one image's label."""
        ...

    def describe(self, index: int) -> str:
        """Return the image's name, for messages."""
        ...


@dataclasses.dataclass(frozen=True)
class BrokenImage:
    """An image that could not be read: its index, its name, and the reason."""

    index: int
    name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class ReadResult:
    """What `RowReader.read` returns besides the pixels.

    Attributes:
        labels: int32 [rows], or [rows, classes] if an image may have several labels.
        mask: float32 [rows], 0 for rows without an example.
        broken: the images that could not be read.
    """

    labels: np.ndarray
    mask: np.ndarray
    broken: tuple[BrokenImage, ...]


@dataclasses.dataclass(frozen=True)
class RowReader:
    """Reads, decodes and augments rows; a pure function of the rows, in any process.

    Attributes:
        images: the examples.
        transform: (pixels, random generator) → uint8 [H, W, channels]; in evaluation a function
            of the pixels alone.
        image_shape: (H, W, channels).
        seed: determines, with a row, its random numbers; None for evaluation, which has none.
        rotate: whether images are rotated by their EXIF orientation.
    """

    images: Images
    transform: Callable[..., np.ndarray]
    image_shape: tuple[int, int, int]
    seed: int | None
    rotate: bool = True

    def read(self, rows: Sequence[Row], out: Sequence[np.ndarray] | np.ndarray) -> ReadResult:
        """Read rows into the arrays `out`, a uint8 [H, W, channels] for each row.

        In training, a broken image is replaced by the next readable one, or masked out if none of
        the next `_MAX_REPLACEMENTS` is readable; in evaluation its row is masked out.

        Raises:
            MachineError: an image could not be read because of a fault of the machine, not of the
                file.
        """
        labels = np.zeros((len(rows), *self.images.label_shape), np.int32)
        mask = np.zeros(len(rows), np.float32)
        broken: dict[int, BrokenImage] = {}
        for index, positions in positions_by_example(rows).items():
            example = self._load(index, broken) if index >= 0 else None
            for position in positions:
                if example is None:
                    out[position][...] = 0
                    continue
                pixels, labels[position] = example
                mask[position] = 1.0
                random = () if self.seed is None else (view_generator(self.seed, rows[position]),)
                out[position][...] = self.transform(pixels, *random)
        return ReadResult(labels, mask, tuple(broken.values()))

    def _load(
        self, index: int, broken: dict[int, BrokenImage]
    ) -> tuple[np.ndarray, int | np.ndarray] | None:
        """Return pixels and label of an example, of its replacement if it is broken, or None.

        The broken images on the way are added to `broken`.
        """
        num_candidates = 1 if self.seed is None else min(_MAX_REPLACEMENTS, len(self.images))
        for candidate in range(index, index + num_candidates):
            candidate %= len(self.images)
            # Files and records may contain anything, and libraries may raise anything on it.
            try:
                encoded, label = self.images[candidate]
                return decode(encoded, self.image_shape[2], self.rotate), label
            except RunError:
                raise
            except Exception as error:
                name, fault = self.images.describe(candidate), machine_fault(error)
                if fault and not self._is_bad_sector(error, candidate):
                    raise MachineError(f"{name}: {fault}") from error
                broken[candidate] = BrokenImage(candidate, name, first_line(error))
        return None

    def _is_bad_sector(self, error: Exception, index: int) -> bool:
        """Return whether an error is an I/O error of this image alone: others can be read."""
        if not (isinstance(error, OSError) and error.errno == errno.EIO):
            return False
        num_images = len(self.images)
        # The next image, and some that are evenly spread over the dataset.
        for other in {
            (index + 1 + i * num_images // _NUM_PROBES) % num_images for i in range(_NUM_PROBES)
        }:
            try:
                self.images[other]
            except Exception:
                continue  # does not prove that the storage works
            return True
        return False


def positions_by_example(rows: Sequence[Row]) -> dict[int, list[int]]:
    """Map each example to the positions of its rows, so that its views share one decoding."""
    positions: dict[int, list[int]] = {}
    for position, row in enumerate(rows):
        positions.setdefault(row.example, []).append(position)
    return positions


def view_generator(seed: int, row: Row) -> np.random.Generator:
    """Return the random generator of one view of one example in one epoch.

    Its numbers are a function of the arguments alone.
    """
    # A counter-based generator: its key is its whole state, so it is cheap to create.
    key = np.array([seed & (2**64 - 1), row.epoch << 40 | row.example], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, row.view]))
