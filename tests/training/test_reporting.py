import json
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
from convit_jax.training.reporting import ConsoleWriter, FileWriter, Reported
from convit_jax.training.window import MetricsWindow, NotFiniteError
from convit_jax.training.workdir import open_workdir


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_lines_hold_step_epoch_and_scalars(tmp_path):
    writer = FileWriter(epath.Path(tmp_path), steps_per_epoch=4, before=Reported(0))
    writer.write_scalars(2, {"train/loss": 1.5, "train/odd": math.nan})
    writer.write_scalars(4, {"eval/loss": 1.0})
    assert records(tmp_path) == [
        {"step": 2, "epoch": 0.5, "train/loss": 1.5, "train/odd": None},
        {"step": 4, "epoch": 1.0, "eval/loss": 1.0},
    ]


def test_a_resumed_file_goes_on_after_the_checkpoints_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "a": 1}\n{"step": 4, "a": 2}\n{"step": 6, "a": 3}\n{"step": 8')
    FileWriter(epath.Path(tmp_path), 4, Reported(4)).write_scalars(6, {"a": 3.5})
    assert [(line["step"], line["a"]) for line in records(tmp_path)] == [(2, 1), (4, 2), (6, 3.5)]


@pytest.mark.parametrize("owes", [False, True])
def test_an_evaluation_that_is_made_again_is_reported_once(owes, tmp_path):
    """As where a run that had been stopped before it evaluated is killed after it evaluated."""
    first = FileWriter(epath.Path(tmp_path), 4, Reported(0))
    for names in (("train/loss",), ("checkpoint/stall_seconds",), ("eval/loss",), ("gate/l/h",)):
        first.write_scalars(4, dict.fromkeys(names, 1.0))
    first.write_scalars(2, {"eval/loss": 1.0})
    first.flush()
    second = FileWriter(epath.Path(tmp_path), 4, Reported(4, owes_evaluation=owes))
    if owes:
        second.write_scalars(4, {"eval/loss": 1.0})
        second.write_scalars(4, {"gate/l/h": 1.0})
        second.flush()
    values = [(line["step"], name) for line in records(tmp_path) for name in list(line)[2:]]
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0})
    events.Reload()
    shown = [
        (event.step, name) for name in events.Tags()["tensors"] for event in events.Tensors(name)
    ]
    assert sorted(values) == sorted(shown)
    assert len(set(values)) == len(values) == 5


def test_a_line_that_was_cut_off_goes_and_the_file_is_never_half_written(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "a": 1}\n{"step": 4, "a"')

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            FileWriter(epath.Path(tmp_path), 4, Reported(4))
    assert path.read_text() == '{"step": 2, "a": 1}\n{"step": 4, "a"'
    FileWriter(epath.Path(tmp_path), 4, Reported(4))
    assert path.read_text() == '{"step": 2, "a": 1}\n'


class Bucket:
    """What etils asks of gs://, here of files in a directory; counts what is written."""

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
    """gs://bucket, in a directory of this machine."""
    backend = Bucket(tmp_path)
    monkeypatch.setattr(gpath.backend_lib, "tf_backend", backend)
    return backend


class Events:
    """In place of TensorFlow's writer, which knows no such bucket."""

    def __init__(self, directory):
        self.written = []

    def write_scalars(self, step, scalars):
        self.written.append((step, scalars))

    def flush(self): ...


@pytest.fixture
def remote(bucket, monkeypatch):
    monkeypatch.setattr(metric_writers, "SummaryWriter", Events)
    return FileWriter(epath.Path("gs://bucket"), 4, Reported(0))


def test_lines_for_a_bucket_are_gathered_and_written_together(remote, bucket, tmp_path):
    """An object can only be written whole: once a line would be far too often."""
    for step in range(1, 101):
        remote.write_scalars(step, {"train/loss": 1.0})
    assert bucket.writes == 0
    assert remote._events.written == []
    remote.flush()
    assert bucket.writes == 1
    assert [line["step"] for line in records(tmp_path)] == list(range(1, 101))
    assert len(remote._events.written) == 100
    remote.flush()
    assert bucket.writes == 1


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (tf.errors.UnavailableError, MachineError, "the storage's host cannot be reached"),
        (tf.errors.AbortedError, MachineError, "the storage did not answer in time"),
        (tf.errors.PermissionDeniedError, InputError, "permission denied"),
        (tf.errors.NotFoundError, InputError, "no such bucket"),
    ],
)
def test_what_a_bucket_answers_becomes_a_sentence(error, kind, words, remote, bucket):
    """TensorFlow's errors are no OSErrors."""
    bucket.error = error(None, None, "no such bucket")
    remote.write_scalars(1, {"train/loss": 1.0})
    with pytest.raises(kind, match=words):
        open_workdir("gs://bucket/run")
    with pytest.raises(RunError, match=r"gs://bucket/metrics.jsonl .* can no longer be written"):
        remote.flush()


def test_console_lines_read_well(caplog):
    with caplog.at_level("INFO"):
        ConsoleWriter(steps_per_epoch=4, total_steps=20).write_scalars(
            6,
            {
                "train/accuracy": 0.5,
                "train/images_per_second": 1234.5,
                "train/loss": 2.30259,
                "train/seconds_left": 65.0,
            },
        )
    assert caplog.messages == [
        "step 6/20  epoch 1.50  loss 2.303  accuracy 50.00%  1,234 images/s  1m05s left"
    ]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0m00s"), (59.6, "1m00s"), (3725, "1h02m"), (360000, "100h00m")]
)
def test_durations_in_words(seconds, words):
    assert duration_in_words(seconds) == words


def test_the_clock_leaves_out_pauses_and_counts_waits(monkeypatch):
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


def test_window_means_are_over_the_steps_asked_for():
    window = MetricsWindow()
    for step in (1, 2, 3):
        window.add(step, {"loss": float(step), "gradient_norm": 1.0, "learning_rate": step / 10})
    assert window.means(2) == {"loss": 1.5, "gradient_norm": 1.0, "learning_rate": 0.2}
    assert window.means(3)["loss"] == 3.0
    assert window.means(3) == {}


@pytest.mark.parametrize("name", ["loss", "gradient_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_first_step_that_is_no_number_is_named(name, value):
    window = MetricsWindow()
    good = {"loss": 1.0, "gradient_norm": 1.0, "learning_rate": 0.1}
    for step in (1, 2, 3):
        window.add(step, good | ({name: value} if step >= 2 else {}))
    with pytest.raises(NotFiniteError) as error:
        window.means(3)
    assert error.value.step == 2
