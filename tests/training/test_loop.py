"""The training loop in this process; `test_resume.py` kills real processes."""

import json
import os
import signal
import threading

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from convit_jax.errors import InputError, RunError
from convit_jax.training import loop, make_experiment, signals
from tests.helpers import read_metrics
from tests.processes import wait_until


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@pytest.fixture
def finished(workdir, make_config, package_log):
    """The workdir and log of a short run, trained once for the module."""
    log = workdir / "log.txt"
    if not log.exists():
        outcome = loop.train(make_config(), str(workdir))
        assert (outcome.step, outcome.stopped_by) == (12, None)
        log.write_text(package_log.text)
    return workdir, log.read_text()


def test_the_files_in_a_workdir(finished):
    workdir, _ = finished
    steps = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert steps[-2:] == [8, 12]
    assert list(workdir.glob("events.out.tfevents.*"))
    record = json.loads((workdir / "config.json").read_text())
    assert record["model"]["num_heads"] == 4
    assert set(record["versions"]) >= {"jax", "flax", "python"}


def test_metrics_are_one_object_per_line(finished):
    lines = read_metrics(finished[0])
    training_lines = [line for line in lines if "train/loss" in line]
    assert {line["step"] for line in training_lines} >= {3, 6, 9, 12}
    for line in training_lines:
        assert line["epoch"] == pytest.approx(line["step"] / 87, abs=1e-3)
        assert np.isfinite(line["train/loss"])
        assert line["train/images_per_second"] > 0
        assert 0 <= line["train/data_wait"] <= 1
        assert line["train/learning_rate"] > 0
    evaluations = [line for line in lines if "eval/loss" in line]
    assert [line["step"] for line in evaluations] == [6, 12]
    assert {line["eval/examples"] for line in evaluations} == {397}


def test_a_run_logs_what_it_does_and_where_its_results_are(finished):
    workdir, log = finished
    for text in (
        "blocks/0/attention/gating",
        "starting from fresh parameters, seed 0",
        "global batch 16",
        "steps 1 to 12, 87 an epoch of 1400 examples",
        "finished 12 steps",
        "best checkpoint: step",
        f"tensorboard --logdir {workdir}",
        f"convit_jax.analyze --weights {workdir} --images digits:test --out {workdir}/analysis "
        "--overlay",
    ):
        assert text in log


def test_a_finished_run_is_not_trained_again(finished, make_config, package_log):
    workdir, _ = finished
    before = read_metrics(workdir)
    outcome = loop.train(make_config(), str(workdir))
    assert outcome.step == 12
    assert "resuming after step 12" in package_log.text
    assert read_metrics(workdir) == before


def test_another_model_in_the_same_workdir_is_refused(finished, make_config):
    workdir, _ = finished
    with pytest.raises(InputError, match=r"started with another configuration: model.depth"):
        loop.train(make_config(model__depth=3), str(workdir))


def test_non_finite_losses_end_the_run_and_keep_the_last_good_checkpoint(
    make_config, tmp_path, monkeypatch
):
    make = loop.make_experiment

    def make_diverging(config, **sizes):
        """Make an experiment whose loss is NaN from the sixth step on."""
        import dataclasses

        import jax.numpy as jnp

        experiment = make(config, **sizes)

        def train_step(state, batch):
            new, metrics = experiment.train_step(state, batch)
            loss = jnp.where(new.step >= 6, jnp.nan, metrics["loss"])
            return new, metrics | {"loss": loss}

        return dataclasses.replace(experiment, train_step=train_step)

    monkeypatch.setattr(loop, "make_experiment", make_diverging)
    config = make_config(log_every="100 steps", eval_every="100 steps")
    with pytest.raises(RunError) as error:
        loop.train(config, str(tmp_path))
    message = str(error.value)
    assert "loss nan" in message
    assert "at step 6 " in message
    assert "the checkpoint of step 4 is good" in message
    assert "config.optimizer.learning_rate" in message
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["4"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_first(number, make_config, tmp_path, package_log):
    def send_after_first_checkpoint():
        wait_until((tmp_path / "checkpoints" / "4").exists)
        os.kill(os.getpid(), number)

    config = make_config(train_for="100000 steps", eval_every="100000 steps")
    before = [signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)]
    sender = threading.Thread(target=send_after_first_checkpoint)
    sender.start()
    outcome = loop.train(config, str(tmp_path))
    sender.join()
    assert outcome.stopped_by == number
    assert 4 <= outcome.step < 100_000
    assert (tmp_path / "checkpoints" / str(outcome.step)).is_dir()
    assert f"stopped by {number.name} after step {outcome.step}" in package_log.text
    # The previous handlers are restored, whatever they were: a background job ignores Ctrl-C.
    assert [signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)] == before


def test_an_evaluation_due_at_the_stop_runs_when_the_run_resumes(
    make_config, tmp_path, monkeypatch
):
    config = make_config(train_for="12 steps", eval_every="6 steps", attention_images=20)
    uninterrupted, stopped = tmp_path / "uninterrupted", tmp_path / "stopped"
    loop.train(config, str(uninterrupted))

    def reached(request, step):
        request.signal = signal.SIGTERM if step == 6 else None
        return step == 6

    with monkeypatch.context() as patch:
        patch.setattr(signals.StopRequest, "reached", reached)
        outcome = loop.train(config, str(stopped))
    assert (outcome.step, outcome.stopped_by) == (6, signal.SIGTERM)
    assert outcome.evaluation is None
    assert not [line for line in read_metrics(stopped) if "eval/accuracy" in line]
    loop.train(config, str(stopped))

    def evaluations(workdir):
        """Return the metrics of evaluations, without timings."""
        lines = [
            {k: v for k, v in line.items() if k.startswith(("eval/", "gate/", "step"))}
            for line in read_metrics(workdir)
        ]
        return sorted((line for line in lines if len(line) > 1), key=str)

    expected = evaluations(uninterrupted)
    assert evaluations(stopped) == expected
    assert [line["step"] for line in expected if "eval/accuracy" in line] == [12, 6]


def test_a_restarted_run_has_one_value_per_step(make_config, tmp_path, monkeypatch):
    """In TensorBoard and metrics.jsonl, after a kill before and one after the first checkpoint."""
    config = make_config(
        train_for="12 steps", eval_every="12 steps", log_every="1 steps", attention_images=20
    )

    class Killed(BaseException):
        pass

    for kill_step in (3, 10):

        def reached(request, step, kill_step=kill_step):
            if step == kill_step:
                raise Killed
            return False

        with monkeypatch.context() as patch:
            patch.setattr(signals.StopRequest, "reached", reached)
            with pytest.raises(Killed):
                loop.train(config, str(tmp_path))
    loop.train(config, str(tmp_path))
    lines = [(line["step"], tuple(line)) for line in read_metrics(tmp_path)]
    assert len(lines) == len(set(lines))
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0})  # all events
    events.Reload()
    steps = [event.step for event in events.Tensors("train/loss")]
    assert steps == list(range(1, 13))
    assert [event.step for event in events.Tensors("gate/layer_01/head_01")] == [0, 12]


def test_a_workdir_that_is_a_file_is_an_input_error(make_config, tmp_path):
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(InputError, match="cannot be used as a directory"):
        loop.train(make_config(), str(path))


def test_fewer_examples_than_a_batch_are_an_input_error(make_config, tmp_path):
    config = make_config(data__train="digits:train[:10]")
    with pytest.raises(InputError, match="batch_size=16 is more than the 10 training examples"):
        loop.train(config, str(tmp_path))


def test_the_budget_of_a_fraction_smaller_than_a_batch_is_that_of_the_dataset(make_config):
    config = make_config(
        data__fraction=0.01, keep_budget=True, batch_size=64, train_for="100 epochs",
        optimizer__warmup="1 steps",
    )  # fmt: skip
    experiment = make_experiment(config, num_examples=10, num_classes=10)
    assert experiment.total_steps == round(100 * 10 / 64 / 0.01)
    for changes in ({"keep_budget": False}, {"data__fraction": 1.0}):
        config = make_config(batch_size=64, **{"keep_budget": True} | changes)
        with pytest.raises(InputError, match="batch_size=64 is more than the 10 training examples"):
            make_experiment(config, num_examples=10, num_classes=10)


def test_a_profile_is_recorded_on_request(make_config, tmp_path):
    loop.train(make_config(profile_at=3, eval_every="100 steps"), str(tmp_path))
    assert list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))


def test_a_step_that_does_not_fit_the_memory_is_a_run_error(make_config, tmp_path, monkeypatch):
    import dataclasses

    import jax

    place = loop.place

    def place_without_memory(*arguments):
        def train_step(state, batch):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating 9 G")

        return dataclasses.replace(place(*arguments), train_step=train_step)

    monkeypatch.setattr(loop, "place", place_without_memory)
    with pytest.raises(RunError, match=r"does not fit .*remat=true.*\(RESOURCE_EXHAUSTED: Out of"):
        loop.train(make_config(), str(tmp_path))
