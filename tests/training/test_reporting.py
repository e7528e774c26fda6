import json
import math

import pytest
from etils import epath

from convit_jax.screen import duration_in_words
from convit_jax.training.clock import Clock
from convit_jax.training.reporting import ConsoleWriter, JsonLinesWriter
from convit_jax.training.window import MetricsWindow, NotFiniteError


def test_lines_hold_step_epoch_and_scalars(tmp_path):
    path = epath.Path(tmp_path / "metrics.jsonl")
    writer = JsonLinesWriter(path, steps_per_epoch=4, start_step=0)
    writer.write_scalars(2, {"train/loss": 1.5, "train/odd": math.nan})
    writer.write_scalars(4, {"eval/loss": 1.0})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [
        {"step": 2, "epoch": 0.5, "train/loss": 1.5, "train/odd": None},
        {"step": 4, "epoch": 1.0, "eval/loss": 1.0},
    ]


def test_a_resumed_file_goes_on_after_the_checkpoints_step(tmp_path):
    path = epath.Path(tmp_path / "metrics.jsonl")
    path.write_text('{"step": 2, "a": 1}\n{"step": 4, "a": 2}\n{"step": 6, "a": 3}\n{"step": 8')
    JsonLinesWriter(path, steps_per_epoch=4, start_step=4).write_scalars(6, {"a": 3.5})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [2, 4, 6]
    assert json.loads(path.read_text().splitlines()[-1])["a"] == 3.5


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
