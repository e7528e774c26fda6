"""What a long run takes: memory, descriptors, threads and shared memory, sampled from outside.

The run is a process of its own, `python -m convit_jax.benchmarks.long_run DIRECTORY FILE < VALUES`.
It tells itself, in the file, how much it has allocated: in what the system sees there is also what
was freed and is kept by the C library for the next who asks.
"""

import contextlib
import ctypes
import dataclasses
import itertools
import json
import logging
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from convit_jax.errors import InputError, RunError
from convit_jax.system.whole_file import write_whole

SAMPLED_EVERY = 0.2  # seconds
EVAL_EVERY = 250  # steps; a checkpoint is written as often
_SETTLED = 1000  # steps until caches are full and pools have started
_MB = 1e6

# A tiny model: what grows with steps, evaluations and checkpoints shows within minutes.
_VALUES = {
    "eval_batch_size": 128,
    "eval_every": f"{EVAL_EVERY} steps",
    "log_every": "25 steps",
    "attention_images": 128,
    "ema_decay": 0.99,
    "model": {"num_heads": 4, "head_dim": 4, "depth": 2, "gpsa_layers": 1, "patch_size": 4,
              "in_channels": 1, "drop_path_rate": 0.1},
    "data": {"train": "digits:train", "eval": "digits:test", "image_size": (8,), "eval_crop": 1.0,
             "mean": (0.305,), "std": (0.376,)},
    "augment": {"rotate": 10.0, "mixup": 0.2},
    "optimizer": {"warmup": "10 steps"},
    "checkpoint": {"every": f"{EVAL_EVERY} steps"},
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Sample:
    """What a run and the processes that it started take at a moment.

    Attributes:
        seconds: since it was started.
        step: the last one that it has told of.
        allocated: megabytes that the process that trains has allocated, and not freed; 0 before it
            has told.
        blocks: pieces of memory that its Python objects have; likewise.
        anonymous: megabytes of all that are no file's.
        rss: megabytes in memory of all, files of libraries too, for each of them.
        pss: likewise, but of what several processes of the machine share a part each.
        shared: megabytes of shared memory that they have mapped.
        descriptors, threads, processes: how many of all.
    """

    seconds: float
    step: int
    allocated: float
    blocks: int
    anonymous: float
    rss: float
    pss: float
    shared: float
    descriptors: int
    threads: int
    processes: int


@dataclasses.dataclass(frozen=True)
class Trend:
    """How one of a run's figures goes once it has settled.

    Attributes:
        figure: an attribute of `Sample`.
        floor: the least between two evaluations, in the middle of all such stretches.
        peak: the most at any moment.
        slope: growth of the floor in 1,000 steps, of a straight line through all stretches.
        error: standard error of the slope.
        late: growth in 1,000 steps in the second half of the run: the median of the slopes between
            any two stretches, which a single jump does not change.
        flat: whether `late` is less than `_FLAT`; None of what the C library keeps, or what other
            programs of the machine have a part in.
    """

    figure: str
    floor: float
    peak: float
    slope: float
    error: float
    late: float
    flat: bool | None


# Growth in 1,000 steps that is not seen as one: less than an array, or ten of Python's pieces of
# memory, that are kept of every step take; or than a descriptor or a thread of every evaluation.
_FLAT = {"allocated": 1.0, "blocks": 10_000.0, "shared": 1.0, "descriptors": 1.0, "threads": 1.0,
         "processes": 1.0}  # fmt: skip
_FIGURES = tuple(f.name for f in dataclasses.fields(Sample) if f.name not in ("seconds", "step"))


def measure_long_run(steps: int, batch_size: int, workers: int) -> list[Sample]:
    """Trains a tiny model on the digits and samples what that takes.

    Args:
        steps: length of the run; it evaluates and saves every 250.
        batch_size: images a step.
        workers: processes that read.

    Raises:
        InputError: the system does not tell what processes take.
        RunError: the run did not end well.
    """
    if not (pathlib.Path("/proc/self/smaps_rollup").exists() and _has_mallinfo()):
        raise InputError("what a run takes is told by Linux and glibc 2.33 or newer alone")
    values = _VALUES | {"train_for": f"{steps} steps", "batch_size": batch_size}
    values["data"] = dict(_VALUES["data"]) | {"num_workers": workers}
    with tempfile.TemporaryDirectory(prefix="convit-jax-long-run-") as scratch:
        said, allocated = pathlib.Path(scratch, "said.txt"), pathlib.Path(scratch, "allocated.txt")
        command = [sys.executable, "-m", "convit_jax.benchmarks.long_run"]
        command += [f"{scratch}/workdir", str(allocated)]
        with said.open("w") as log:
            run = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=log, text=True)
        try:
            run.stdin.write(json.dumps(values) + "\n")
            run.stdin.flush()  # and it stays open: the run ends when this process does
            samples = list(_sampled(run, said, allocated))
        finally:
            run.kill()
            run.wait()
            run.stdin.close()
        if run.returncode:
            raise RunError(f"the run failed: {said.read_text().strip().splitlines()[-1]}")
    return samples


def trends(samples: Sequence[Sample], stretch: int = EVAL_EVERY) -> list[Trend]:
    """How each figure goes after the first 1,000 steps, or the first fifth of a shorter run.

    While it evaluates and saves a run takes more, and gives it back; what is kept of every step or
    evaluation shows in the least that it takes between two of them.

    Args:
        samples: of a run.
        stretch: steps from one evaluation to the next.

    Raises:
        InputError: there are fewer than three such stretches.
    """
    last = max(sample.step for sample in samples)
    settled = min(_SETTLED, last // 5)
    stretches: dict[int, list[Sample]] = {}
    for sample in samples:
        if settled <= sample.step < last:  # after its last step it only ends
            stretches.setdefault(sample.step // stretch, []).append(sample)
    if len(stretches) < 3:
        raise InputError(
            f"--steps={last}: expected {4 * stretch} or more, so that there is a trend to see"
        )
    return [_trend(name, stretches, stretch) for name in _FIGURES]


def _trend(name: str, stretches: Mapping[int, Sequence[Sample]], stretch: int) -> Trend:
    floors = np.array([min(getattr(s, name) for s in those) for those in stretches.values()])
    places = np.array(list(stretches)) * stretch / 1000
    away = places - places.mean()
    slope = float(away @ floors / (away @ away))
    rest = floors - floors.mean() - slope * away
    error = float(np.sqrt(rest @ rest / (len(floors) - 2) / (away @ away)))
    peak = max(getattr(s, name) for those in stretches.values() for s in those)
    half = len(floors) // 2
    late = float(np.median([
        (floors[j] - floors[i]) / (places[j] - places[i])
        for i, j in itertools.combinations(range(half, len(floors)), 2)
    ]))  # fmt: skip
    flat = late < _FLAT[name] if name in _FLAT else None
    return Trend(name, float(np.median(floors)), float(peak), slope, error, late, flat)


def _sampled(
    run: subprocess.Popen[str], said: pathlib.Path, allocated: pathlib.Path
) -> Iterator[Sample]:
    """Samples until it ends."""
    began = time.monotonic()
    while run.poll() is None:
        told = re.findall(r"step (\d+)/", said.read_text(errors="replace"))
        taken = [taken for pid in _family(run.pid) if (taken := _taken(pid))]
        if taken:
            memory, descriptors, threads, segments = zip(*taken, strict=True)
            rss, pss, anonymous = (round(sum(each), 3) for each in zip(*memory, strict=True))
            own = allocated.read_text().split() if allocated.exists() else ("0", "0")
            yield Sample(
                seconds=round(time.monotonic() - began, 2),
                step=int(told[-1]) if told else 0,
                allocated=float(own[0]),
                blocks=int(own[1]),
                anonymous=anonymous,
                rss=rss,
                pss=pss,
                shared=round(_size(segment for each in segments for segment in each), 3),
                descriptors=sum(descriptors),
                threads=sum(threads),
                processes=len(taken),
            )
        time.sleep(SAMPLED_EVERY)


def _family(pid: int) -> list[int]:
    """A process and all that it started, itself first."""
    found = [pid]
    # The children of each of its threads, where the kernel tells them.
    for path in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # it has ended
            for child in path.read_text().split():
                found += _family(int(child))
    return found


_Taken = tuple[tuple[float, ...], int, int, set[tuple[str, int]]]


def _taken(pid: int) -> _Taken | None:
    """(RSS, PSS, anonymous) in MB, descriptors, threads and shared segments of a process."""
    process = pathlib.Path(f"/proc/{pid}")
    try:
        rollup = (process / "smaps_rollup").read_text()
        descriptors = len(os.listdir(process / "fd"))  # noqa: PTH208  (names alone)
        threads = len(os.listdir(process / "task"))  # noqa: PTH208
        maps = (process / "maps").read_text()
    except OSError:
        return None  # it has ended meanwhile
    kilobytes = [
        re.search(rf"^{name}: +(\d+) kB", rollup, re.MULTILINE)
        for name in ("Rss", "Pss", "Anonymous")
    ]
    if not all(kilobytes):
        return None  # it is ending: it has no memory any more
    memory = tuple(1024 * int(found[1]) / _MB for found in kilobytes)
    segments = {
        (path, int(end, 16) - int(start, 16))
        for start, end, path in re.findall(r"^(\w+)-(\w+) .* (/dev/shm/\S+)", maps, re.MULTILINE)
    }
    return memory, descriptors, threads, segments


def _size(segments: Iterable[tuple[str, int]]) -> float:
    """Megabytes; one that several have mapped counts once."""
    return sum(size for _, size in set(segments)) / _MB


class _MallInfo(ctypes.Structure):
    """What glibc's `mallinfo2` tells of all its arenas."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks",
                     "uordblks", "fordblks", "keepcost")
    )  # fmt: skip


def _has_mallinfo() -> bool:
    return hasattr(ctypes.CDLL(None), "mallinfo2")


def allocated_here() -> float:
    """Megabytes that this process has allocated and not freed, Python's small objects left out."""
    tell = ctypes.CDLL(None).mallinfo2
    tell.restype = _MallInfo
    told = tell()
    return (told.uordblks + told.hblkhd) / _MB


class _Teller(logging.Handler):
    """Writes at each line of metrics what the process has allocated, for the one that samples."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        del record
        text = f"{allocated_here():.3f} {sys.getallocatedblocks()}"
        write_whole(self._path, lambda path: path.write_text(text))


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    """Trains as the values on standard input say."""
    from convit_jax.config import resolve  # noqa: PLC0415  (the process that samples does without)
    from convit_jax.training import loop  # noqa: PLC0415

    values = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.getLogger("convit_jax.training.reporting").addHandler(_Teller(sys.argv[2]))
    loop.train(resolve(values), sys.argv[1])


if __name__ == "__main__":
    main()
