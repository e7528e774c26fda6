"""Runs in real processes that are killed and resumed."""

import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.helpers import read_metrics
from tests.processes import wait_until

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


def start(repository, workdir, **overrides):
    """Start train.py as a user would, in a new process group."""
    arguments = [f"--config.{key}={value}" for key, value in (OVERRIDES | overrides).items()]
    return subprocess.Popen(
        [sys.executable, "train.py", "--config=configs/digits.py", f"--workdir={workdir}",
         *arguments],
        cwd=repository, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def finish(process):
    _, log = process.communicate(timeout=300)
    assert process.returncode == 0, log
    return log


def wait_for_checkpoint(process, workdir, beyond):
    """Wait until a checkpoint of more than `beyond` steps is being written or complete."""

    def is_saved():
        assert process.poll() is None, process.stderr.read()
        names = [path.name.partition(".")[0] for path in workdir.glob("checkpoints/*")]
        return any(name.isdigit() and int(name) > beyond for name in names)

    assert wait_until(is_saved, seconds=120), "no checkpoint in two minutes"


def last_state(workdir):
    directory = workdir / "checkpoints" / str(STEPS) / "state"
    return ocp.StandardCheckpointer().restore(directory)


def losses(workdir):
    lines = read_metrics(workdir)
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


@pytest.mark.parametrize("to_group", [False, True])
def test_sigterm_saves_and_ends_with_the_code_on_which_launchers_restart(
    to_group, repository, tmp_path
):
    """To the process, or as `timeout`, systemd and scancel do, also to the data workers."""
    process = start(repository, tmp_path, **{"data.num_workers": 2} if to_group else {})
    wait_for_checkpoint(process, tmp_path, 0)
    if to_group:
        os.killpg(process.pid, signal.SIGTERM)
    else:
        process.terminate()
    _, log = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, log
    saved = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert f"stopped by SIGTERM after step {saved} of {STEPS}" in log


def test_a_second_run_in_a_workdir_is_refused(repository, tmp_path):
    first = start(repository, tmp_path, train_for="100000 steps")
    wait_for_checkpoint(first, tmp_path, 0)
    second = start(repository, tmp_path, train_for="100000 steps")
    _, log = second.communicate(timeout=120)
    assert second.returncode == 2
    assert f"is in use by process {first.pid} on " in log
    first.kill()
    first.wait()
    # The lock ends with the process, however it ends.
    third = start(repository, tmp_path, train_for="100000 steps")
    wait_for_checkpoint(third, tmp_path, 20)
    third.kill()
    assert "in use" not in third.communicate()[1]
