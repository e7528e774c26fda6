"""Speed of the input pipeline, from encoded bytes to uint8 batches, in images per core-second."""

import dataclasses
import io
import itertools
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from convit_jax.benchmarks.timm_model import check_timm
from convit_jax.benchmarks.worker_memory import worker_memory
from convit_jax.data import EpochOrder, EvalTransform, Source, TrainTransform, open_source
from convit_jax.data.images.decoding import decode
from convit_jax.data.reading import Images, Row, RowReader, positions_by_example
from convit_jax.data.sources import imagenet
from convit_jax.errors import InputError
from convit_jax.system.freed_memory import keep_freed_memory

RANDAUGMENT = "rand-m9-mstd0.5-inc1"
# Everything is measured in turn in each round, so that a slow minute affects all alike.
_ROUNDS = 20
# Different batches of each kind of processing.
_MAX_BATCHES = 60


@dataclasses.dataclass(frozen=True)
class InputSpeed:
    """Speed of one kind of processing, as reported by `benchmark input`.

    Attributes:
        work: name of the processing.
        images_per_core_second: median over the rounds.
        ratio: median over the rounds of this speed over timm's at the same work in the same round;
            None if not compared.
        decodings_per_view: how often an image is decoded for each row of a batch; None for timm.
    """

    work: str
    images_per_core_second: float
    ratio: float | None = None
    decodings_per_view: float | None = None


# CPU-seconds to measure for → images per CPU-second.
SpeedTest = Callable[[float], float]


def measure_input(
    data: str, *, image_size: int, batch_size: int, seconds: float, against_timm: bool
) -> tuple[list[InputSpeed], float | None]:
    """Time reading, decoding and augmenting on one core.

    Args:
        data: name of the data, as for `open_source`.
        image_size: side in pixels.
        batch_size: rows per batch.
        seconds: CPU-seconds for each kind of processing, over all rounds.
        against_timm: also time timm's transforms at the same work (timm must be installed).

    Returns:
        A speed for each kind of processing, and the megabytes of a worker process, if known.

    Raises:
        InputError: the data are missing or too few, or timm is needed and not installed.
    """
    keep_freed_memory()  # as in the worker processes; timm's transforms profit, too
    source = open_source(data)
    workloads = _workloads(source, image_size, batch_size)
    tests: dict[str, SpeedTest] = {name: _speed_test(*load) for name, load in workloads.items()}
    tests |= {"reading and decoding alone": _decoding_test(source)}
    counterparts: dict[str, str] = {}
    if against_timm:
        for name, test in _timm_speed_tests(source, image_size, batch_size).items():
            tests[f"timm: {name}"] = test
        counterparts = {
            "evaluation": "timm: evaluation",
            "full recipe": "timm: full recipe",
            # timm's repeated augmentation decodes the image for each view.
            "full recipe, 3 views": "timm: full recipe",
        }
    rounds = [
        {name: test(seconds / _ROUNDS) for name, test in tests.items()} for _ in range(_ROUNDS)
    ]
    speeds = []
    for name in tests:
        other = counterparts.get(name)
        ratio = statistics.median(r[name] / r[other] for r in rounds) if other else None
        speed = statistics.median(r[name] for r in rounds)
        decodings = _decodings_per_view(workloads[name][1]) if name in workloads else None
        speeds.append(InputSpeed(name, speed, ratio, decodings))
    reader, batches = workloads["full recipe"]
    return speeds, worker_memory(reader, next(batches))


def _workloads(
    source: Source, side: int, batch_size: int
) -> dict[str, tuple[RowReader, Iterator[list[Row]]]]:
    """Return the reader and the rows of the batches for each kind of processing."""
    size = (side, side)
    plain = TrainTransform(size, 3, crop="random_resized", flip=0.5)
    full = dataclasses.replace(plain, randaugment=RANDAUGMENT)

    def training(transform: TrainTransform, repeats: int) -> tuple[RowReader, Iterator[list[Row]]]:
        order = EpochOrder(len(source), batch_size, seed=0, repeats=repeats)
        reader = RowReader(source, transform, (*size, 3), 0, source.rotates_by_exif)
        # The same rows over and over, located before anything is timed: in a run the main process
        # does that.
        steps = range(min(repeats * order.steps_per_epoch, _MAX_BATCHES))
        batches = [[order.locate(step, row) for row in range(batch_size)] for step in steps]
        return reader, itertools.cycle(batches)

    transform = EvalTransform(size, 3, imagenet.CROP_FRACTION)
    evaluation = RowReader(source, transform, (*size, 3), None, source.rotates_by_exif)
    starts = itertools.count(0, batch_size)
    in_order = ([Row((start + i) % len(source)) for i in range(batch_size)] for start in starts)
    return {
        "evaluation": (evaluation, in_order),
        "crop and flip": training(plain, 1),
        "full recipe": training(full, 1),
        "full recipe, 3 views": training(full, 3),
    }


def _speed_test(reader: RowReader, batches: Iterator[list[Row]]) -> SpeedTest:
    def read_batch() -> int:
        rows = next(batches)
        pixels = np.empty((len(rows), *reader.image_shape), np.uint8)
        result = reader.read(rows, pixels)
        if result.broken:
            raise InputError(f"cannot read {result.broken[0].name}: {result.broken[0].reason}")
        return len(rows)

    return _as_speed_test(read_batch)


def _decoding_test(source: Source) -> SpeedTest:
    """Return a test of what every other processing of one view includes."""
    indices = itertools.cycle(range(len(source)))

    def read_image() -> int:
        encoded, _ = source[next(indices)]
        decode(encoded, 3, source.rotates_by_exif)
        return 1

    return _as_speed_test(read_image)


def _decodings_per_view(batches: Iterator[list[Row]]) -> float:
    """Return the share of a batch's rows for which an image is decoded: others share it."""
    rows = next(batches)
    return len(positions_by_example(rows)) / len(rows)


def _as_speed_test(read_batch: Callable[[], int]) -> SpeedTest:
    """Return a speed test that calls a function, which returns the number of images it read."""

    def test(seconds: float) -> float:
        num_images, start = 0, time.process_time()
        while (elapsed := time.process_time() - start) < seconds:
            num_images += read_batch()
        return num_images / elapsed

    read_batch()  # the first call opens files and imports modules
    return test


def _timm_speed_tests(images: Images, side: int, batch_size: int) -> dict[str, SpeedTest]:
    """Return tests of timm's transforms, from the same bytes to uint8 batches of the same size."""
    check_timm()
    from timm.data import create_transform  # noqa: PLC0415

    common = {"input_size": side, "interpolation": "bicubic", "use_prefetcher": True}
    transforms = {
        "evaluation": create_transform(**common, crop_pct=imagenet.CROP_FRACTION),
        # At magnitude 10 timm's Posterize passes 0 bits to Pillow, which raises an error.
        "full recipe": create_transform(
            **common, is_training=True, auto_augment=f"{RANDAUGMENT}-mmax9"
        ),
    }

    def speed_test(transform: Callable[[Image.Image], np.ndarray]) -> SpeedTest:
        indices = itertools.count()

        def read_batch() -> int:
            pixels = np.empty((batch_size, 3, side, side), np.uint8)
            for row in range(batch_size):
                encoded, _ = images[next(indices) % len(images)]
                pixels[row] = transform(Image.open(io.BytesIO(encoded)).convert("RGB"))
            return batch_size

        return _as_speed_test(read_batch)

    return {name: speed_test(transform) for name, transform in transforms.items()}
