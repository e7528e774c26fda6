import shutil

import pytest
from etils import epath

from convit_jax.config import EarlyStoppingConfig
from convit_jax.training import loop
from convit_jax.training.early_stopping import EarlyStopping, resume_early_stopping
from tests.faults.comparison import arrays
from tests.helpers import read_metrics


@pytest.mark.parametrize(
    ("accuracies", "patience", "min_delta", "stop"),
    [
        ((0.1, 0.2, 0.2, 0.15), 2, 0.0, 4),
        ((0.1, 0.2, 0.2, 0.25, 0.25), 2, 0.0, None),
        # Each is a little better than the one before, and after three evaluations than the best.
        ((0.10, 0.14, 0.18, 0.22), 2, 0.05, None),
        ((0.10, 0.12, 0.14), 2, 0.05, 3),
        ((0.3, 0.2), 1, 0.0, 2),
        ((0.3, 0.2, 0.1, 0.0), 0, 0.0, None),
        ((0.0, 0.0), 1, 0.0, 2),
    ],
)
def test_a_run_stops_after_evaluations_without_a_new_best(accuracies, patience, min_delta, stop):
    state, stops = EarlyStopping(EarlyStoppingConfig(patience, min_delta)), []
    for number, accuracy in enumerate(accuracies, 1):
        state = state.after(number, accuracy)
        stops += [number] * state.stops
    assert (stops[0] if stops else None) == stop


def test_the_evaluations_of_a_resumed_run_are_those_of_its_metrics(tmp_path):
    metrics, accuracy = tmp_path / "metrics.jsonl", 0.1 + 0.2  # not a float32
    config = EarlyStoppingConfig(patience=5, min_delta=0.01)
    assert resume_early_stopping(config, epath.Path(metrics)) == EarlyStopping(config)
    metrics.write_text(
        f'{{"step": 6, "epoch": 1.0, "eval/accuracy": {accuracy!r}}}\n'
        '{"step": 9, "epoch": 1.5, "train/loss": 2.0}\n'
        '{"step": 12, "epoch": 2.0, "eval/accuracy": 0.305}\n'
    )
    resumed = resume_early_stopping(config, epath.Path(metrics))
    assert resumed == EarlyStopping(config, best=accuracy, best_step=6, since_best=1)


@pytest.fixture(scope="module")
def evaluations():
    """The accuracy that each step's evaluation gives in these tests."""
    return {2: 0.3, 4: 0.5, 6: 0.4, 8: 0.45, 10: 0.2, 12: 0.1}


@pytest.fixture
def train(make_config, monkeypatch, tmp_path, evaluations):
    """Train in a directory with a patience of three; each step's accuracy is given."""
    means, accuracies = loop.means, []

    def given(sums):
        return means(sums) | {"accuracy": accuracies.pop(0)}

    def run(name, start=0, **overrides):
        accuracies[:] = [value for step, value in evaluations.items() if step > start]
        options = {"eval_every": "2 steps", "checkpoint__every": "2 steps", "ema_decay": 0.5}
        options |= {"early_stopping": {"patience": 3}}
        return loop.train(make_config(**(options | overrides)), str(tmp_path / name))

    monkeypatch.setattr(loop, "means", given)
    return run


def test_a_run_ends_early_and_stays_ended(train, tmp_path, package_log):
    outcome = train("run")
    assert (outcome.step, outcome.stopped_by) == (10, None)
    reason = "the run ends after step 10 of 12: 3 evaluations did not exceed the accuracy of step 4"
    assert f"{reason}, 50.00% (config.early_stopping.patience)" in package_log.text
    assert "finished 10 steps" in package_log.text
    lines = [line for line in read_metrics(tmp_path / "run") if "eval/accuracy" in line]
    since_best = [line["eval/evaluations_since_best"] for line in lines]
    assert since_best == [0, 0, 1, 2, 3]
    assert [line.get("eval/stopped_early") for line in lines] == [None] * 4 + [1]
    # The best checkpoint is among those kept.
    assert {"4", "10"} <= {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}

    # Again: nothing is trained. Cut off: the evaluations before count.
    shutil.copytree(tmp_path / "run", tmp_path / "cut")
    assert train("run", start=10).step == 10
    assert read_metrics(tmp_path / "run")[-1]["step"] == 10
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "10")
    assert train("cut", start=8).step == 10
    last = [arrays(tmp_path / name / "checkpoints" / "10") for name in ("run", "cut")]
    assert last[0] == last[1]

    # With more patience it continues to its last step.
    assert train("run", start=10, early_stopping={"patience": 9}).step == 12
