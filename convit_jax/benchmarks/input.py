"""Speed of the data road: from encoded bytes to uint8 batches, in images a core-second."""

import dataclasses
import io
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from convit_jax.benchmarks.timm_model import check_timm
from convit_jax.benchmarks.worker_memory import worker_memory
from convit_jax.data import EpochOrder, EvalTransform, Source, TrainTransform, open_source
from convit_jax.data.reading import Images, Row, RowReader
from convit_jax.data.sources import imagenet
from convit_jax.errors import InputError

RANDAUGMENT = "rand-m9-mstd0.5-inc1"
# Rounds in which everything is measured in turn, so that a slow minute hits all alike.
_ROUNDS = 5


@dataclasses.dataclass(frozen=True)
class InputSpeed:
    """What `benchmark input` measures of one kind of reading.

    Attributes:
        work: what is done to the images.
        images_per_core_second: median over the rounds.
        ratio: median over the rounds of this over timm's pace in the same round, at the same
            work; None where they are not compared.
    """

    work: str
    images_per_core_second: float
    ratio: float | None = None


# A pace is taken by reading rows, from a first position on, for so many CPU-seconds.
Pace = Callable[[float], float]


def measure_input(
    data: str, *, image_size: int, batch_size: int, seconds: float, against_timm: bool
) -> tuple[list[InputSpeed], float | None]:
    """Times reading, decoding and augmenting on one core.

    Args:
        data: what to read, as `open_source` takes it.
        image_size: side in pixels.
        batch_size: rows a batch.
        seconds: CPU-seconds for each kind of reading, over all rounds.
        against_timm: also time timm's transforms at the same work (timm must be installed).

    Returns:
        A speed for each kind of reading, and the megabytes that a worker process takes, if known.

    Raises:
        InputError: the data are not there or too few, or timm is wanted and not installed.
    """
    images = open_source(data)
    readings = _readings(images, image_size, batch_size)
    paces: dict[str, Pace] = {name: _pace(*reading) for name, reading in readings.items()}
    counterparts: dict[str, str] = {}
    if against_timm:
        for name, pace in _timm_paces(images, image_size, batch_size).items():
            paces[f"timm: {name}"] = pace
        counterparts = {
            "evaluation": "timm: evaluation",
            "full recipe": "timm: full recipe",
            # timm's repeated augmentation decodes an image for each view.
            "full recipe, 3 views": "timm: full recipe",
        }
    rounds = [
        {name: pace(seconds / _ROUNDS) for name, pace in paces.items()} for _ in range(_ROUNDS)
    ]
    speeds = []
    for name in paces:
        other = counterparts.get(name)
        ratio = statistics.median(r[name] / r[other] for r in rounds) if other else None
        speeds.append(InputSpeed(name, statistics.median(r[name] for r in rounds), ratio))
    reader, rows = readings["full recipe"]
    return speeds, worker_memory(reader, next(rows))


def _readings(
    images: Source, side: int, batch_size: int
) -> dict[str, tuple[RowReader, Iterator[list[Row]]]]:
    """Each kind of reading: its reader, and the rows of its batches."""
    size = (side, side)
    plain = TrainTransform(size, 3, crop="random_resized", flip=0.5)
    full = dataclasses.replace(plain, randaugment=RANDAUGMENT)

    def training(transform: TrainTransform, repeats: int) -> tuple[RowReader, Iterator[list[Row]]]:
        order = EpochOrder(len(images), batch_size, seed=0, repeats=repeats)
        reader = RowReader(images, transform, (*size, 3), 0, images.rotates_by_exif)
        steps = iter(range(sys.maxsize))
        return reader, ([order.locate(s, row) for row in range(batch_size)] for s in steps)

    transform = EvalTransform(size, 3, imagenet.CROP_FRACTION)
    evaluation = RowReader(images, transform, (*size, 3), None, images.rotates_by_exif)
    starts = iter(range(0, sys.maxsize, batch_size))
    in_turn = ([Row((s + i) % len(images)) for i in range(batch_size)] for s in starts)
    return {
        "evaluation": (evaluation, in_turn),
        "crop and flip": training(plain, 1),
        "full recipe": training(full, 1),
        "full recipe, 3 views": training(full, 3),
    }


def _pace(reader: RowReader, batches: Iterator[list[Row]]) -> Pace:
    def read() -> int:
        rows = next(batches)
        out = np.empty((len(rows), *reader.image_shape), np.uint8)
        found = reader.read(rows, out)
        if found.broken:
            raise InputError(f"cannot read {found.broken[0].name}: {found.broken[0].reason}")
        return len(rows)

    return _timed(read)


def _timed(read: Callable[[], int]) -> Pace:
    def pace(seconds: float) -> float:
        count, began = 0, time.process_time()
        while (spent := time.process_time() - began) < seconds:
            count += read()
        return count / spent

    read()  # the first opens files and imports what it needs
    return pace


def _timm_paces(images: Images, side: int, batch_size: int) -> dict[str, Pace]:
    """Timm's own transforms, from the same bytes to the same kind of uint8 batch."""
    check_timm()
    from timm.data import create_transform  # noqa: PLC0415

    common = {"input_size": side, "interpolation": "bicubic", "use_prefetcher": True}
    transforms = {
        "evaluation": create_transform(**common, crop_pct=imagenet.CROP_FRACTION),
        # At a magnitude of 10 its Posterize asks Pillow for 0 bits, which is an error there.
        "full recipe": create_transform(
            **common, is_training=True, auto_augment=f"{RANDAUGMENT}-mmax9"
        ),
    }

    def reading(transform: Callable[[Image.Image], np.ndarray]) -> Pace:
        positions = iter(range(sys.maxsize))

        def read() -> int:
            out = np.empty((batch_size, 3, side, side), np.uint8)
            for place, position in zip(range(batch_size), positions, strict=False):
                encoded, _ = images[position % len(images)]
                out[place] = transform(Image.open(io.BytesIO(encoded)).convert("RGB"))
            return batch_size

        return _timed(read)

    return {name: reading(transform) for name, transform in transforms.items()}
