"""Resource usage of a long run: memory, descriptors, threads and shared memory.

The run is a separate process, `python -m convit_jax.benchmarks.long_run WORKDIR FILE < CONFIG`,
sampled from outside. The run itself writes to FILE how much memory it has allocated, because the
system's figures include memory that was freed and that the C library retains for reuse.
"""

import contextlib
import ctypes
import dataclasses
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
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from convit_jax.errors import InputError, RunError
from convit_jax.system.whole_file import write_whole

SAMPLING_INTERVAL = 0.2  # seconds
EVAL_EVERY = 250  # steps; also the interval between checkpoints
_WARMUP_STEPS = 1000  # until caches are full and pools have started
_MB = 1e6

# A tiny model, so that growth with steps, evaluations and checkpoints shows within minutes.
_CONFIG: dict[str, Any] = {
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
    """Resources used at one moment by a run's main process and its descendants together.

    Attributes:
        seconds: time since the run was started.
        step: the last step that it has logged.
        allocated: megabytes that the main process has allocated and not freed; 0 before its first
            report.
        blocks: memory blocks of the main process's Python objects; 0 before its first report.
        anonymous: megabytes that are not backed by a file.
        rss: resident megabytes; memory shared by several processes is counted for each.
        pss: resident megabytes; shared memory is divided among the machine's processes sharing it.
        shared: megabytes of shared memory mapped.
        descriptors, threads, processes: number of each.
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
    """Trend of one of a run's figures after the warm-up.

    Attributes:
        figure: an attribute of `Sample`.
        floor: minimum between two evaluations, the median over all such intervals.
        peak: maximum at any moment.
        slope: growth of the minimum per 1,000 steps, by linear regression over all intervals.
        error: standard error of the slope.
        late: growth per 1,000 steps in the second half of the run: the median of the slopes between
            any two intervals, which a single jump does not change.
        flat: whether `late` is less than `_FLAT`; None for figures that include memory retained by
            the C library or that depend on the machine's other programs.
    """

    figure: str
    floor: float
    peak: float
    slope: float
    error: float
    late: float
    flat: bool | None


# Growth per 1,000 steps below which a figure counts as flat: less than a leak of one array or ten
# of Python's memory blocks per step, or of one descriptor or thread per evaluation.
_FLAT = {"allocated": 1.0, "blocks": 10_000.0, "shared": 1.0, "descriptors": 1.0, "threads": 1.0,
         "processes": 1.0}  # fmt: skip
_FIGURES = tuple(f.name for f in dataclasses.fields(Sample) if f.name not in ("seconds", "step"))


def measure_long_run(steps: int, batch_size: int, workers: int) -> list[Sample]:
    """Train a tiny model on the digits and sample the resources that this uses.

    Args:
        steps: length of the run; it evaluates and saves every 250 steps.
        batch_size: images per step.
        workers: number of processes that read data.

    Raises:
        InputError: the system does not report the resources that processes use.
        RunError: the run failed.
    """
    if not (pathlib.Path("/proc/self/smaps_rollup").exists() and _has_mallinfo()):
        raise InputError("sampling the resources of a run needs Linux and glibc 2.33 or newer")
    config = _CONFIG | {"train_for": f"{steps} steps", "batch_size": batch_size}
    config["data"] = _CONFIG["data"] | {"num_workers": workers}
    with tempfile.TemporaryDirectory(prefix="convit-jax-long-run-") as scratch:
        log_path, report_path = (pathlib.Path(scratch, f"{name}.txt") for name in ("log", "report"))
        command = [sys.executable, "-m", "convit_jax.benchmarks.long_run"]
        command += [f"{scratch}/workdir", str(report_path)]
        with log_path.open("w") as log:
            run = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=log, text=True)
        assert run.stdin is not None
        try:
            run.stdin.write(json.dumps(config) + "\n")
            run.stdin.flush()  # stays open, so that the run ends when this process does
            samples = list(_sample_until_exit(run, log_path, report_path))
        finally:
            run.kill()
            run.wait()
            run.stdin.close()
        if run.returncode:
            raise RunError(f"the run failed: {log_path.read_text().strip().splitlines()[-1]}")
    return samples


def compute_trends(samples: Sequence[Sample], interval: int = EVAL_EVERY) -> list[Trend]:
    """Return the trend of each figure after the first 1,000 steps or fifth of a shorter run.

    A run uses more while it evaluates and saves, and frees it afterwards; what it leaks with each
    step or evaluation shows in its minimum between two evaluations.

    Args:
        samples: samples of a run.
        interval: steps from one evaluation to the next.

    Raises:
        InputError: there are fewer than three intervals.
    """
    last = max(sample.step for sample in samples)
    first = min(_WARMUP_STEPS, last // 5)
    intervals: dict[int, list[Sample]] = {}
    for sample in samples:
        if first <= sample.step < last:  # after its last step the run only shuts down
            intervals.setdefault(sample.step // interval, []).append(sample)
    if len(intervals) < 3:
        raise InputError(
            f"--steps={last}: expected {4 * interval} or more, enough to fit a trend to"
        )
    return [_compute_trend(name, intervals, interval) for name in _FIGURES]


def _compute_trend(name: str, intervals: Mapping[int, Sequence[Sample]], interval: int) -> Trend:
    from scipy import stats  # noqa: PLC0415  (not needed in the measured process)

    values = [[getattr(sample, name) for sample in samples] for samples in intervals.values()]
    floors = np.array([min(group) for group in values])
    steps = np.array(list(intervals)) * interval / 1000  # in thousands
    line = stats.linregress(steps, floors)
    half = len(floors) // 2
    late = float(stats.theilslopes(floors[half:], steps[half:]).slope)
    return Trend(
        figure=name,
        floor=float(np.median(floors)),
        peak=float(max(map(max, values))),
        slope=float(line.slope),
        error=float(line.stderr),
        late=late,
        flat=late < _FLAT[name] if name in _FLAT else None,
    )


def _sample_until_exit(
    run: subprocess.Popen[str], log_path: pathlib.Path, report_path: pathlib.Path
) -> Iterator[Sample]:
    """Sample a run until it exits, given its log and the file with its report on itself."""
    start = time.monotonic()
    while run.poll() is None:
        logged_steps = re.findall(r"step (\d+)/", log_path.read_text(errors="replace"))
        usages = [usage for pid in _process_tree(run.pid) if (usage := _process_usage(pid))]
        if usages:
            report = report_path.read_text().split() if report_path.exists() else ("0", "0")
            yield Sample(
                seconds=round(time.monotonic() - start, 2),
                step=int(logged_steps[-1]) if logged_steps else 0,
                allocated=float(report[0]),
                blocks=int(report[1]),
                anonymous=round(sum(usage.anonymous for usage in usages), 3),
                rss=round(sum(usage.rss for usage in usages), 3),
                pss=round(sum(usage.pss for usage in usages), 3),
                shared=round(_total_size(set().union(*(usage.segments for usage in usages))), 3),
                descriptors=sum(usage.descriptors for usage in usages),
                threads=sum(usage.threads for usage in usages),
                processes=len(usages),
            )
        time.sleep(SAMPLING_INTERVAL)


def _process_tree(pid: int) -> list[int]:
    """Return a process and all its descendants, itself first."""
    pids = [pid]
    # The kernel lists children by the thread that started them.
    for path in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has ended
            for child in path.read_text().split():
                pids += _process_tree(int(child))
    return pids


class _ProcessUsage(NamedTuple):
    """Resources of one process: memory in MB, numbers, and (path, bytes) of its shared memory."""

    rss: float
    pss: float
    anonymous: float
    descriptors: int
    threads: int
    segments: set[tuple[str, int]]


def _process_usage(pid: int) -> _ProcessUsage | None:
    """Return the resources of a process, or None if it has ended or is ending."""
    process = pathlib.Path(f"/proc/{pid}")
    try:
        rollup = (process / "smaps_rollup").read_text()
        descriptors = len(os.listdir(process / "fd"))  # noqa: PTH208  (only names are needed)
        threads = len(os.listdir(process / "task"))  # noqa: PTH208
        maps = (process / "maps").read_text()
    except OSError:
        return None  # it has ended
    kilobytes = dict(re.findall(r"^(Rss|Pss|Anonymous): +(\d+) kB", rollup, re.MULTILINE))
    if len(kilobytes) < 3:
        return None  # it is ending and has released its memory
    rss, pss, anonymous = (1024 * int(kilobytes[k]) / _MB for k in ("Rss", "Pss", "Anonymous"))
    segments = {
        (path, int(end, 16) - int(start, 16))
        for start, end, path in re.findall(r"^(\w+)-(\w+) .* (/dev/shm/\S+)", maps, re.MULTILINE)
    }
    return _ProcessUsage(rss, pss, anonymous, descriptors, threads, segments)


def _total_size(segments: Collection[tuple[str, int]]) -> float:
    """Return the megabytes of (path, bytes) of shared memory."""
    return sum(size for _, size in segments) / _MB


class _MallInfo(ctypes.Structure):
    """The result of glibc's `mallinfo2`, over all arenas."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks",
                     "uordblks", "fordblks", "keepcost")
    )  # fmt: skip


def _has_mallinfo() -> bool:
    return hasattr(ctypes.CDLL(None), "mallinfo2")


def allocated_megabytes() -> float:
    """Return what this process has allocated and not freed, without Python's small objects."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _MallInfo
    info = mallinfo2()
    return (info.uordblks + info.hblkhd) / _MB


class _AllocationReporter(logging.Handler):
    """Writes what the process has allocated to a file with each line of metrics."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        del record
        text = f"{allocated_megabytes():.3f} {sys.getallocatedblocks()}"
        write_whole(self._path, text)


def _exit_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    """Train with the configuration given on standard input."""
    from convit_jax.config import resolve  # noqa: PLC0415  (not needed in the sampling process)
    from convit_jax.training import loop  # noqa: PLC0415

    values = json.loads(sys.stdin.readline())
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    logging.getLogger("convit_jax.training.reporting").addHandler(_AllocationReporter(sys.argv[2]))
    loop.train(resolve(values), sys.argv[1])


if __name__ == "__main__":
    main()
