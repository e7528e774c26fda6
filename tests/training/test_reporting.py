import math
import pathlib

import pytest
import tensorflow as tf
from clu import metric_writers
from etils import epath
from etils.epath import gpath
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from convit_jax.console.screen import duration_in_words
from convit_jax.errors import InputError, MachineError, RunError
from convit_jax.training.clock import Clock
from convit_jax.training.reporting import ConsoleWriter, FileWriter, ResumePoint
from convit_jax.training.window import MetricsWindow, NotFiniteError
from convit_jax.training.workdir import open_workdir
from tests.helpers import read_metrics


def test_lines_hold_step_epoch_and_scalars(tmp_path):
    writer = FileWriter(epath.Path(tmp_path), steps_per_epoch=4, resume_point=ResumePoint(0))
    writer.write_scalars(2, {"train/loss": 1.5, "train/odd": math.nan})
    writer.write_scalars(4, {"eval/loss": 1.0})
    assert read_metrics(tmp_path) == [
        {"step": 2, "epoch": 0.5, "train/loss": 1.5, "train/odd": None},
        {"step": 4, "epoch": 1.0, "eval/loss": 1.0},
    ]


def test_a_resumed_file_continues_after_the_step_of_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "a": 1}\n{"step": 4, "a": 2}\n{"step": 6, "a": 3}\n{"step": 8')
    FileWriter(epath.Path(tmp_path), 4, ResumePoint(4)).write_scalars(6, {"a": 3.5})
    assert [(line["step"], line["a"]) for line in read_metrics(tmp_path)] == [
        (2, 1),
        (4, 2),
        (6, 3.5),
    ]


@pytest.mark.parametrize("evaluation_missing", [False, True])
def test_a_repeated_evaluation_is_reported_once(evaluation_missing, tmp_path):
    """It repeats if a run resumes from a checkpoint without evaluation, evaluates and is killed."""
    first = FileWriter(epath.Path(tmp_path), 4, ResumePoint(0))
    for names in (("train/loss",), ("checkpoint/stall_seconds",), ("eval/loss",), ("gate/l/h",)):
        first.write_scalars(4, dict.fromkeys(names, 1.0))
    first.write_scalars(2, {"eval/loss": 1.0})
    first.flush()
    resume_point = ResumePoint(4, evaluation_missing=evaluation_missing)
    second = FileWriter(epath.Path(tmp_path), 4, resume_point)
    if evaluation_missing:
        second.write_scalars(4, {"eval/loss": 1.0})
        second.write_scalars(4, {"gate/l/h": 1.0})
        second.flush()
    in_lines = [(line["step"], name) for line in read_metrics(tmp_path) for name in list(line)[2:]]
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0})
    events.Reload()
    in_events = [
        (event.step, name) for name in events.Tags()["tensors"] for event in events.Tensors(name)
    ]
    assert sorted(in_lines) == sorted(in_events)
    assert len(set(in_lines)) == len(in_lines) == 5


def test_a_truncated_line_is_removed_and_the_file_is_never_half_written(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "a": 1}\n{"step": 4, "a"')

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            FileWriter(epath.Path(tmp_path), 4, ResumePoint(4))
    assert path.read_text() == '{"step": 2, "a": 1}\n{"step": 4, "a"'
    FileWriter(epath.Path(tmp_path), 4, ResumePoint(4))
    assert path.read_text() == '{"step": 2, "a": 1}\n'


class Bucket:
    """A fake etils backend that maps gs://bucket to a local directory and counts writes."""

    def __init__(self, directory):
        self._directory = str(directory)
        self.writes, self.error = 0, None

    def _local(self, path):
        return str(path).replace("gs://bucket", self._directory)

    def open(self, path, mode):
        if mode[0] in "wa":
            self.writes += 1
            if self.error:
                raise self.error
        return pathlib.Path(self._local(path)).open(mode)

    def exists(self, path):
        return pathlib.Path(self._local(path)).exists()

    def glob(self, path):
        return []

    def makedirs(self, path, *, exist_ok=False, mode=None):
        if self.error:
            raise self.error
        pathlib.Path(self._local(path)).mkdir(parents=True, exist_ok=True)

    mkdir = makedirs

    def remove(self, path):
        pathlib.Path(self._local(path)).unlink()


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A fake gs://bucket in a local directory."""
    backend = Bucket(tmp_path)
    monkeypatch.setattr(gpath.backend_lib, "tf_backend", backend)
    return backend


@pytest.fixture
def events(monkeypatch):
    """The scalars passed to clu's SummaryWriter, replaced because it cannot write to the bucket."""
    written = []
    for name, method in (
        ("__init__", lambda self, directory: None),
        ("write_scalars", lambda self, step, scalars: written.append((step, scalars))),
        ("flush", lambda self: None),
    ):
        monkeypatch.setattr(metric_writers.SummaryWriter, name, method)
    return written


@pytest.fixture
def writer(bucket, events):
    return FileWriter(epath.Path("gs://bucket"), 4, ResumePoint(0))


def test_lines_for_a_bucket_are_buffered_and_written_together(writer, bucket, events, tmp_path):
    """An object can only be written as a whole; doing so for every line would be too slow."""
    for step in range(1, 101):
        writer.write_scalars(step, {"train/loss": 1.0})
    assert bucket.writes == 0
    assert events == []
    writer.flush()
    assert bucket.writes == 1
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(1, 101))
    assert len(events) == 100
    writer.flush()
    assert bucket.writes == 1


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (tf.errors.UnavailableError, MachineError, "the storage's host cannot be reached"),
        (tf.errors.AbortedError, MachineError, "the storage did not answer in time"),
        (tf.errors.PermissionDeniedError, InputError, "permission denied"),
        (tf.errors.NotFoundError, InputError, "no such bucket"),
    ],
)
def test_errors_of_a_bucket_are_reported_in_one_sentence(error, expected, message, writer, bucket):
    """TensorFlow's errors are not OSErrors."""
    bucket.error = error(None, None, "no such bucket")
    writer.write_scalars(1, {"train/loss": 1.0})
    with pytest.raises(expected, match=message):
        open_workdir("gs://bucket/run")
    with pytest.raises(RunError, match=r"gs://bucket/metrics.jsonl .* can no longer be written"):
        writer.flush()


def test_the_format_of_console_lines(caplog):
    with caplog.at_level("INFO"):
        ConsoleWriter(steps_per_epoch=4, total_steps=20).write_scalars(
            6,
            {
                "train/accuracy": 0.5,
                "train/device_hours": 12.345,
                "train/images_per_second": 1234.5,
                "train/mfu": 0.4156,
                "train/loss": 2.30259,
                "train/seconds_left": 65.0,
            },
        )
    assert caplog.messages == [
        "step 6/20  epoch 1.50  loss 2.303  accuracy 50.00%  1,234 images/s  MFU 41.6%  "
        "12.3 device-hours  1m05s left"
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0m00s"), (59.6, "1m00s"), (3725, "1h02m"), (360000, "100h00m")]
)
def test_durations_in_words(seconds, text):
    assert duration_in_words(seconds) == text


def test_the_clock_excludes_pauses_and_counts_waits(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    clock = Clock(batch_size=8, total_steps=20)
    clock.restart(0)
    with clock.waiting():
        now[0] += 1.0
    now[0] += 3.0
    with clock.paused():
        now[0] += 50.0
    assert clock.lap(2) == {"data_wait": 0.25, "images_per_second": 4.0, "seconds_left": 36.0}


def test_window_means_are_over_the_steps_up_to_the_given_one():
    window = MetricsWindow()
    for step in (1, 2, 3):
        window.add(step, {"loss": float(step), "gradient_norm": 1.0, "learning_rate": step / 10})
    assert window.means(2) == {"loss": 1.5, "gradient_norm": 1.0, "learning_rate": 0.2}
    assert window.means(3)["loss"] == 3.0
    assert window.means(3) == {}


@pytest.mark.parametrize("name", ["loss", "gradient_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_first_step_that_is_not_finite_is_reported(name, value):
    window = MetricsWindow()
    good = {"loss": 1.0, "gradient_norm": 1.0, "learning_rate": 0.1}
    for step in (1, 2, 3):
        window.add(step, good | ({name: value} if step >= 2 else {}))
    with pytest.raises(NotFiniteError) as error:
        window.means(3)
    assert error.value.step == 2
