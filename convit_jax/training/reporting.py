"""What a run tells: TensorBoard events, metrics.jsonl, and lines for the person who watches."""

import functools
import json
import logging
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from clu import metric_writers
from etils import epath

from convit_jax.screen import duration_in_words
from convit_jax.whole_file import write_whole

log = logging.getLogger(__name__)


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


class JsonLinesWriter(_ScalarWriter):
    """One JSON object a line: step, epoch and the scalars written together."""

    def __init__(self, path: epath.Path, steps_per_epoch: int, start_step: int) -> None:
        """Continues the file after `start_step`: later lines, of steps to be done again, go.

        So does everything where the run begins: it reports before its first step, too.
        """
        self._path = path
        self._steps_per_epoch = steps_per_epoch
        if path.exists():
            lines = path.read_text().splitlines()
            kept = [line for line in lines if _is_done(_step_of(line), start_step)]
            if len(kept) < len(lines):
                path.write_text("".join(f"{line}\n" for line in kept))

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Appends a line."""
        epoch = round(step / self._steps_per_epoch, 4)
        # JSON has no NaN; what is no number is null.
        values = {k: float(v) if math.isfinite(v) else None for k, v in scalars.items()}
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, "epoch": epoch} | values) + "\n")


def _is_done(step: float, start_step: int) -> bool:
    """Whether what was reported at a step stays where a run goes on; where it begins, nothing."""
    return 0 < start_step >= step


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # cut off while it was written


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


def _take_back_events(workdir: epath.Path, start_step: int) -> None:
    """Leaves out of the event files what was written of steps that are to be done again.

    TensorBoard would show them twice. Where a run begins that is everything.
    """
    import tensorflow as tf  # noqa: PLC0415
    from tensorboard.compat.proto import event_pb2  # noqa: PLC0415

    for path in sorted(workdir.glob("events.out.tfevents.*")):
        kept, taken_back = [], 0
        try:
            for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                event = event_pb2.Event.FromString(record)
                if event.HasField("summary") and not _is_done(event.step, start_step):
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
    workdir: epath.Path, *, steps_per_epoch: int, total_steps: int, start_step: int, is_first: bool
) -> metric_writers.MetricWriter:
    """The writers of a run, as one.

    Args:
        workdir: where events and metrics.jsonl go.
        steps_per_epoch: to state epochs.
        total_steps: length of the run.
        start_step: where the run goes on.
        is_first: whether this is the first process, the one that writes files.
    """
    console = ConsoleWriter(steps_per_epoch, total_steps)
    if not is_first:
        return metric_writers.MultiWriter([console])
    # TensorFlow writes the events; it must not take the accelerators that JAX computes on.
    import tensorflow as tf  # noqa: PLC0415

    tf.config.set_visible_devices([], "GPU")
    _take_back_events(workdir, start_step)
    return metric_writers.MultiWriter(
        [
            console,
            JsonLinesWriter(workdir / "metrics.jsonl", steps_per_epoch, start_step),
            metric_writers.SummaryWriter(str(workdir)),
        ]
    )
