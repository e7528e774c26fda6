"""What a run tells: TensorBoard events, metrics.jsonl, and lines for the person who watches."""

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
from clu import metric_writers
from etils import epath

from convit_jax.console.screen import duration_in_words
from convit_jax.errors import RunError, boundary, first_line, machine_fault
from convit_jax.system.whole_file import write_whole

log = logging.getLogger(__name__)

# Names of what is reported of an evaluation; "train/" and "checkpoint/" are the steps' own.
_OF_EVALUATIONS = ("eval/", "gate/", "nonlocality/")


class _ScalarWriter(metric_writers.MetricWriter):
    """A writer that takes scalars alone and lets everything else go by to the others."""

    def write_summaries(self, step: int, values: Any, metadata: Any = None) -> None: ...

    def write_images(self, step: int, images: Any) -> None: ...

    def write_videos(self, step: int, videos: Any) -> None: ...

    def write_audios(self, step: int, audios: Any, *, sample_rate: int) -> None: ...

    def write_texts(self, step: int, texts: Any) -> None: ...

    def write_histograms(self, step: int, arrays: Any, num_buckets: Any = None) -> None: ...

    def write_hparams(self, hparams: Any) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class ConsoleWriter(_ScalarWriter):
    """A line of text for each group of scalars."""

    def __init__(self, steps_per_epoch: int, total_steps: int) -> None:
        """`total_steps` is the length of the run."""
        self._steps_per_epoch = steps_per_epoch
        self._total_steps = total_steps

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Logs a line."""
        epoch = step / self._steps_per_epoch
        words = [f"step {step}/{self._total_steps}", f"epoch {epoch:.2f}"]
        told = [name for name in scalars if "/layer_" not in name]  # those are for figures
        words += [_in_words(name, float(scalars[name])) for name in sorted(told, key=_rank)]
        log.info("  ".join(words))


_FIRST, _LAST = ("loss", "accuracy"), ("images_per_second", "data_wait", "seconds_left")


def _rank(name: str) -> tuple[int, str]:
    """Order on a line: what matters most first, the time left last."""
    what = name.rpartition("/")[2]
    if what in _FIRST:
        return _FIRST.index(what), what
    if what in _LAST:
        return 100 + _LAST.index(what), what
    return len(_FIRST), what


def _in_words(name: str, value: float) -> str:
    what = name.rpartition("/")[2]
    if name.startswith("eval/"):
        what = f"eval {what}"
    if "accuracy" in what or what == "data_wait":
        text = f"{100 * value:.2f}%"
    elif what == "seconds_left":
        return f"{duration_in_words(value)} left"
    elif what == "stall_seconds":
        return f"stalled {value:.2f} s for a checkpoint"
    elif what == "images_per_second":
        return f"{value:,.0f} images/s"
    elif value >= 100:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.4g}"
    return f"{what.replace('_', ' ')} {text}"


@dataclasses.dataclass(frozen=True)
class Reported:
    """Which of what a run reported before stays where it goes on.

    Attributes:
        start_step: where it goes on; later steps are done, and reported, again. Where it begins,
            everything is: it reports before its first step, too.
        owes_evaluation: whether that step is evaluated again; its report may be there or not.
    """

    start_step: int
    owes_evaluation: bool = False

    def keeps(self, step: float, names: Iterable[str]) -> bool:
        """Whether values of these names, reported at a step, stay."""
        if step < self.start_step:
            return True
        again = self.start_step == 0 or step > self.start_step
        return not again and not (
            self.owes_evaluation and all(name.startswith(_OF_EVALUATIONS) for name in names)
        )


class FileWriter(_ScalarWriter):
    """metrics.jsonl (a JSON object a line: step, epoch, scalars) and TensorBoard's event files.

    On gs://, where an object can only be written whole, what is reported is gathered and written by
    `flush`. A run that flushes before each checkpoint loses nothing when it is killed but what it
    reports again when it goes on.
    """

    def __init__(self, workdir: epath.Path, steps_per_epoch: int, before: Reported) -> None:
        """Continues the files in a workdir.

        Raises:
            InputError: they cannot be read or written.
            MachineError: the machine does not let them be.
        """
        self._path = workdir / "metrics.jsonl"
        self._steps_per_epoch = steps_per_epoch
        self._gathers = "://" in str(workdir)
        self._gathered: list[tuple[int, dict[str, float]]] = []
        with boundary(f"{self._path} and the events beside it", "cannot be written", chosen=True):
            _take_back_lines(self._path, before)
            _take_back_events(workdir, before)
            self._events = metric_writers.SummaryWriter(str(workdir))

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Appends a line and events, or gathers them for the next `flush`.

        Raises:
            RunError: they can no longer be written.
        """
        self._gathered.append((step, {name: float(value) for name, value in scalars.items()}))
        if not self._gathers:
            self._write()

    def flush(self) -> None:
        """Returns when all that was reported is in the files.

        Raises:
            RunError: they can no longer be written.
        """
        self._write()
        with self._writing():
            self._events.flush()

    def _write(self) -> None:
        gathered, self._gathered = self._gathered, []
        if not gathered:
            return
        with self._writing():
            with self._path.open("a") as file:
                file.write("".join(self._line(step, scalars) for step, scalars in gathered))
            for step, scalars in gathered:
                self._events.write_scalars(step, scalars)

    def _line(self, step: int, scalars: Mapping[str, float]) -> str:
        epoch = round(step / self._steps_per_epoch, 4)
        # JSON has no NaN; what is no number is null.
        values = {k: v if math.isfinite(v) else None for k, v in scalars.items()}
        return json.dumps({"step": step, "epoch": epoch} | values) + "\n"

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """What could be written at the beginning: that it no longer can be is no user's mistake."""
        try:
            yield
        except Exception as error:
            reason = machine_fault(error) or first_line(error)
            raise RunError(
                f"{self._path} and the events beside it can no longer be written: {reason}"
            ) from error


def _take_back_lines(path: epath.Path, before: Reported) -> None:
    """Leaves out of metrics.jsonl what is to be reported again, and what was cut off by a kill."""
    if not path.exists():
        return
    lines = path.read_text().splitlines()
    kept = [line for line in lines if _stays(line, before)]
    if len(kept) < len(lines):
        text = "".join(f"{line}\n" for line in kept)
        write_whole(path, lambda draft: draft.write_text(text))


def _stays(line: str, before: Reported) -> bool:
    try:
        record = json.loads(line)
        return before.keeps(record["step"], record.keys() - {"step", "epoch"})
    except (ValueError, KeyError, TypeError):
        return False  # cut off while it was written


def _take_back_events(workdir: epath.Path, before: Reported) -> None:
    """Leaves the same out of the event files: TensorBoard would show it twice."""
    import tensorflow as tf  # noqa: PLC0415
    from tensorboard.compat.proto import event_pb2  # noqa: PLC0415

    for path in sorted(workdir.glob("events.out.tfevents.*")):
        kept, taken_back = [], 0
        try:
            for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                event = event_pb2.Event.FromString(record)
                names = [value.tag for value in event.summary.value]
                if names and not before.keeps(event.step, names):
                    taken_back += 1
                else:
                    kept.append(record)
        except tf.errors.DataLossError:
            taken_back += 1  # its last record was cut off when the run was killed
        if taken_back:
            write_whole(path, functools.partial(_write_records, kept))


def _write_records(records: Sequence[bytes], path: pathlib.Path) -> None:
    import tensorflow as tf  # noqa: PLC0415

    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)


def make_writer(
    workdir: epath.Path, *, steps_per_epoch: int, total_steps: int, before: Reported
) -> metric_writers.MetricWriter:
    """The writers of a run, as one; those of a process other than the first write nothing.

    Args:
        workdir: where events and metrics.jsonl go.
        steps_per_epoch: to state epochs.
        total_steps: length of the run.
        before: what stays of what was reported before.

    Raises:
        InputError: the files in the workdir cannot be read or written.
        MachineError: the machine does not let them be.
    """
    if jax.process_index():
        return metric_writers.MultiWriter([])
    # TensorFlow writes the events; it must not take the accelerators that JAX computes on.
    import tensorflow as tf  # noqa: PLC0415

    tf.config.set_visible_devices([], "GPU")
    return metric_writers.MultiWriter(
        [
            ConsoleWriter(steps_per_epoch, total_steps),
            FileWriter(workdir, steps_per_epoch, before),
        ]
    )
