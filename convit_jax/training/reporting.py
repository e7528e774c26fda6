"""Writing metrics: TensorBoard events, metrics.jsonl, and log lines on the console."""

import contextlib
import dataclasses
import functools
import json
import logging
import math
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import tensorflow as tf
from clu import metric_writers
from etils import epath
from tensorboard.compat.proto import event_pb2

from convit_jax.console.screen import duration_in_words
from convit_jax.errors import RunError, boundary, first_line, machine_fault
from convit_jax.system.whole_file import write_whole

log = logging.getLogger(__name__)

# Prefixes of an evaluation's metrics; those of the training steps are "train/" and "checkpoint/".
_EVALUATION_PREFIXES = ("eval/", "gate/", "nonlocality/")


class ConsoleWriter(metric_writers.LoggingWriter):
    """Logs each group of scalars as one readable line."""

    def __init__(self, steps_per_epoch: int, total_steps: int) -> None:
        """Create the writer of a run of `total_steps` steps."""
        super().__init__()
        self._steps_per_epoch = steps_per_epoch
        self._total_steps = total_steps

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Log one line, without the scalars of single layers, which are for plots."""
        epoch = step / self._steps_per_epoch
        names = sorted((name for name in scalars if "/layer_" not in name), key=_sort_key)
        columns = [f"step {step}/{self._total_steps}", f"epoch {epoch:.2f}"]
        columns += [_format_scalar(name, float(scalars[name])) for name in names]
        log.info("  ".join(columns))

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Do nothing: images are for TensorBoard."""

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Do nothing, as for images."""


# The order of a line's scalars; the others, in alphabetical order, take the place of "".
_ORDER = (
    "loss", "accuracy", "", "images_per_second", "mfu", "data_wait", "device_hours", "seconds_left",
)  # fmt: skip


def _sort_key(name: str) -> tuple[int, str]:
    """Order the scalars of a line: the most important first, the time left last."""
    metric = name.rpartition("/")[2]
    return _ORDER.index(metric if metric in _ORDER else ""), metric


def _format_scalar(name: str, value: float) -> str:
    metric = name.rpartition("/")[2]
    if name.startswith("eval/"):
        metric = f"eval {metric}"
    if metric == "mfu":
        return f"MFU {100 * value:.1f}%"
    if "accuracy" in metric or "agreement" in metric or metric == "data_wait":
        text = f"{100 * value:.2f}%"
    elif metric == "seconds_left":
        return f"{duration_in_words(value)} left"
    elif metric == "device_hours":
        return f"{value:.3g} device-hours"
    elif metric == "stall_seconds":
        return f"stalled {value:.2f} s for a checkpoint"
    elif metric == "images_per_second":
        return f"{value:,.0f} images/s"
    elif value >= 100:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.4g}"
    return f"{metric.replace('_', ' ')} {text}"


@dataclasses.dataclass(frozen=True)
class ResumePoint:
    """Where a run starts or resumes, which decides what earlier metrics are retained.

    Attributes:
        start_step: number of completed steps. Later steps are run, and reported, again. At 0
            everything is, because a run also reports before its first step.
        evaluation_missing: whether the evaluation at `start_step` is run again; its metrics may
            or may not have been written.
    """

    start_step: int
    evaluation_missing: bool = False

    def retains(self, step: float, names: Iterable[str]) -> bool:
        """Return whether earlier values of these metrics at a step are retained."""
        if step < self.start_step:
            return True
        if self.start_step == 0 or step > self.start_step:
            return False
        return not (
            self.evaluation_missing and all(name.startswith(_EVALUATION_PREFIXES) for name in names)
        )


class FileWriter(metric_writers.SummaryWriter):
    """Writes TensorBoard events and metrics.jsonl (per line, an object of step, epoch, scalars).

    On gs://, where an object can only be written as a whole, scalars are buffered until `flush`. A
    run that flushes before each checkpoint and is killed loses only what it reports again when it
    resumes.
    """

    def __init__(
        self, workdir: epath.Path, steps_per_epoch: int, resume_point: ResumePoint
    ) -> None:
        """Continue the files in a workdir.

        Raises:
            InputError: they cannot be read or written.
            MachineError: a fault of the machine prevents reading or writing them.
        """
        self._path = workdir / "metrics.jsonl"
        self._steps_per_epoch = steps_per_epoch
        self._buffers_until_flush = "://" in str(workdir)
        self._buffer: list[tuple[int, dict[str, float]]] = []
        with boundary(f"{self._path} and the events beside it", "cannot be written", chosen=True):
            _rewind_lines(self._path, resume_point)
            _rewind_events(workdir, resume_point)
            super().__init__(str(workdir))

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Append a line and events, or buffer them for the next `flush`.

        Raises:
            RunError: they can no longer be written.
        """
        self._buffer.append((step, {name: float(value) for name, value in scalars.items()}))
        if not self._buffers_until_flush:
            self._write_buffer()

    def flush(self) -> None:
        """Write everything that was reported to the files.

        Raises:
            RunError: they can no longer be written.
        """
        self._write_buffer()
        with self._raising_run_errors():
            super().flush()

    def _write_buffer(self) -> None:
        reports, self._buffer = self._buffer, []
        if not reports:
            return
        with self._raising_run_errors():
            with self._path.open("a") as file:
                file.write("".join(self._line(step, scalars) for step, scalars in reports))
            for step, scalars in reports:
                super().write_scalars(step, scalars)

    def _line(self, step: int, scalars: Mapping[str, float]) -> str:
        epoch = round(step / self._steps_per_epoch, 4)
        # JSON has no NaN or infinity: such values become null.
        values = {k: v if math.isfinite(v) else None for k, v in scalars.items()}
        return json.dumps({"step": step, "epoch": epoch} | values) + "\n"

    @contextlib.contextmanager
    def _raising_run_errors(self) -> Iterator[None]:
        """Raise errors as RunError: the files were writable at the start, so no input is wrong."""
        try:
            yield
        except Exception as error:
            reason = machine_fault(error) or first_line(error)
            raise RunError(
                f"{self._path} and the events beside it can no longer be written: {reason}"
            ) from error


def _rewind_lines(path: epath.Path, resume_point: ResumePoint) -> None:
    """Remove from metrics.jsonl the lines that will be reported again or were cut off by a kill."""
    if not path.exists():
        return
    lines = path.read_text().splitlines()
    retained = [line for line in lines if _retains_line(line, resume_point)]
    if len(retained) < len(lines):
        text = "".join(f"{line}\n" for line in retained)
        write_whole(path, text)


def _retains_line(line: str, resume_point: ResumePoint) -> bool:
    try:
        record = json.loads(line)
        return resume_point.retains(record["step"], record.keys() - {"step", "epoch"})
    except (ValueError, KeyError, TypeError):
        return False  # cut off while it was written


def _rewind_events(workdir: epath.Path, resume_point: ResumePoint) -> None:
    """Remove the same from the event files, which TensorBoard would otherwise show twice."""
    for path in sorted(workdir.glob("events.out.tfevents.*")):
        retained, dropped_any = [], False
        try:
            for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                event = event_pb2.Event.FromString(record)
                names = [value.tag for value in event.summary.value]
                if names and not resume_point.retains(event.step, names):
                    dropped_any = True
                else:
                    retained.append(record)
        except tf.errors.DataLossError:
            dropped_any = True  # the last record was cut off when the run was killed
        if dropped_any:
            write_whole(path, functools.partial(_write_records, retained))


def _write_records(records: Sequence[bytes], path: pathlib.Path) -> None:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)


def make_writer(
    workdir: epath.Path,
    *,
    steps_per_epoch: int,
    total_steps: int,
    resume_point: ResumePoint,
    tracking: metric_writers.MetricWriter | None = None,
) -> metric_writers.MetricWriter:
    """Return the metric writer of a run; it writes nothing in processes other than the first.

    Args:
        workdir: directory of the event files and metrics.jsonl.
        steps_per_epoch: steps per epoch, to state epochs.
        total_steps: length of the run.
        resume_point: where the run starts or resumes.
        tracking: a further writer, of a tracking service.

    Raises:
        InputError: the files in the workdir cannot be read or written.
        MachineError: a fault of the machine prevents reading or writing them.
    """
    if jax.process_index():
        return metric_writers.MultiWriter([])
    # TensorFlow writes the events; it must not claim the accelerators that JAX computes on.
    tf.config.set_visible_devices([], "GPU")
    console = ConsoleWriter(steps_per_epoch, total_steps)
    files = FileWriter(workdir, steps_per_epoch, resume_point)
    return metric_writers.MultiWriter([console, files, *([tracking] if tracking else [])])
