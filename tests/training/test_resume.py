"""A run that is killed and started again, by real processes."""

import json
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

STEPS = 240
OVERRIDES = {
    "train_for": f"{STEPS} steps",
    "batch_size": 16,
    "eval_every": "60 steps",
    "log_every": "10 steps",
    "ema_decay": 0.9,
    "checkpoint.every": "20 steps",
    "model.depth": 2,
    "model.gpsa_layers": 1,
    "model.drop_path_rate": 0.2,
    "optimizer.accumulate": 2,
}


def start(repository, workdir):
    """Starts train.py as a user would."""
    arguments = [f"--config.{key}={value}" for key, value in OVERRIDES.items()]
    return subprocess.Popen(
        [sys.executable, "train.py", "--config=configs/digits.py", f"--workdir={workdir}",
         *arguments],
        cwd=repository, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process):
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def wait_for_checkpoint(process, workdir, beyond):
    """Until a checkpoint of more than `beyond` steps has been begun or written."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        begun = [path.name.partition(".")[0] for path in workdir.glob("checkpoints/*")]
        if any(name.isdigit() and int(name) > beyond for name in begun):
            return
        time.sleep(0.002)
    raise AssertionError("no checkpoint in two minutes")


def last_state(workdir):
    directory = workdir / "checkpoints" / str(STEPS) / "state"
    return ocp.StandardCheckpointer().restore(directory)


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]


@pytest.fixture(scope="module")
def uninterrupted(repository, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    finish(start(repository, workdir))
    return workdir


def test_killed_twice_and_resumed_the_parameters_are_bit_identical(
    uninterrupted, repository, tmp_path
):
    for beyond, pause in ((0, 0.0), (60, 0.05)):
        process = start(repository, tmp_path)
        wait_for_checkpoint(process, tmp_path, beyond)
        time.sleep(pause)
        process.kill()
        process.wait()
        assert not (tmp_path / "checkpoints" / str(STEPS)).exists(), "it was too fast to be killed"
    assert "resuming after step" in finish(start(repository, tmp_path))

    expected, resumed = last_state(uninterrupted), last_state(tmp_path)
    assert jax.tree.structure(expected) == jax.tree.structure(resumed)
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(resumed), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
    assert len(jax.tree.leaves(expected)) > 50
    steps = [step for step, _ in losses(tmp_path)]
    assert steps == sorted(set(steps))
    assert losses(tmp_path)[-1] == losses(uninterrupted)[-1]


def test_sigterm_saves_and_ends_with_the_code_that_launchers_restart(repository, tmp_path):
    process = start(repository, tmp_path)
    wait_for_checkpoint(process, tmp_path, 0)
    process.terminate()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, said
    saved = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert f"stopped by SIGTERM after step {saved} of {STEPS}" in said
