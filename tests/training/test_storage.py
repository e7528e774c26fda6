"""Runs with failing storage: full, read-only, unmounted, or on a machine whose clock jumps."""

import contextlib
import os
import random
import subprocess
import time

import numpy as np
import pytest

from convit_jax.errors import InputError, RunError
from convit_jax.training import loop, signals
from convit_jax.weights import open_weights
from tests.helpers import read_metrics

SIZE = 4 << 20  # bytes


@pytest.fixture
def disk(tmp_path):
    """The directory of a small separate file system."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", directory],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")

    yield directory
    # Lazily, because files may still be open.
    subprocess.run(["umount", "--lazy", directory], check=True)


@pytest.fixture
def at_step(monkeypatch):
    """A function that registers an action to call once after a step of the next run."""

    def register(action_step, action):
        reached, pending = signals.StopRequest.reached, [action]

        def call_and_check(request, step):
            if step == action_step and pending:
                pending.pop()()
            return reached(request, step)

        monkeypatch.setattr(signals.StopRequest, "reached", call_and_check)

    return register


@pytest.fixture
def config(make_config):
    return make_config(log_every="1 steps", checkpoint__every="3 steps", eval_every="6 steps")


def wait_for(checkpoint):
    """Wait until a checkpoint, which is written in the background, is complete."""
    while not checkpoint.is_dir():
        time.sleep(0.01)


def final_arrays(workdir):
    return open_weights(str(workdir)).tensors


@pytest.fixture
def undisturbed(config, tmp_path):
    """The final arrays of an undisturbed run."""
    loop.train(config, str(tmp_path / "undisturbed"))
    return final_arrays(tmp_path / "undisturbed")


def assert_same(arrays, expected):
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


# Free bytes: none; enough for a metrics line; for part of a checkpoint (about 100,000); for most.
@pytest.mark.parametrize("free", [0, 8 << 10, 60 << 10, 200 << 10])
def test_a_full_disk_loses_nothing(free, config, disk, at_step, undisturbed):
    workdir, filler = disk / "run", disk / "filler"

    def fill():
        wait_for(workdir / "checkpoints" / "3")
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        os.truncate(filler, filler.stat().st_size - free)

    at_step(5, fill)
    with pytest.raises(RunError, match="space"):
        loop.train(config, str(workdir))
    names = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    assert "3" in names
    assert not [name for name in names if "damaged" in name]
    filler.unlink()
    assert loop.train(config, str(workdir)).step == 12
    assert_same(final_arrays(workdir), undisturbed)


def test_a_read_only_workdir_is_an_input_error(config, disk):
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with pytest.raises(
        InputError, match=r"cannot be used as a directory to write to: the file system is read-only"
    ):
        loop.train(config, str(disk))


def test_storage_that_is_unmounted_and_remounted_loses_nothing(
    config, disk, at_step, undisturbed, tmp_path
):
    elsewhere, workdir = tmp_path / "elsewhere", disk / "run"
    elsewhere.mkdir()
    at_step(5, lambda: subprocess.run(["mount", "--move", disk, elsewhere], check=True))
    try:
        # Of the metrics, or of a checkpoint that is still being written: the reason is the first
        # file that is missing.
        with pytest.raises(RunError, match=r" be written.*No (such file|ArrayMetadata found)"):
            loop.train(config, str(workdir))
    finally:
        subprocess.run(["mount", "--move", elsewhere, disk], check=True)
    assert loop.train(config, str(workdir)).step == 12
    assert_same(final_arrays(workdir), undisturbed)


@pytest.fixture
def clock(monkeypatch):
    """A list with the offset in seconds of the machine's clock."""
    offset, true_time = [0.0], time.time
    monkeypatch.setattr(time, "time", lambda: true_time() + offset[0])
    monkeypatch.setattr(time, "time_ns", lambda: int(time.time() * 1e9))
    return offset


@pytest.mark.parametrize("jump", [-3e7, 3e7])
def test_a_clock_jump_changes_nothing(jump, config, tmp_path, at_step, clock, undisturbed):
    """A jump of a year while nothing is being saved."""
    workdir = tmp_path / "run"

    def change():
        wait_for(workdir / "checkpoints" / "3")
        clock[0] += jump

    at_step(5, change)
    loop.train(config, str(workdir))
    assert_same(final_arrays(workdir), undisturbed)
    assert [line["step"] for line in read_metrics(workdir) if "train/loss" in line] == [
        *range(1, 13)
    ]


def test_a_clock_jump_while_saving_loses_nothing(config, tmp_path, monkeypatch, undisturbed):
    """Orbax's timeouts use that clock, so a jump may end the run, which can then be resumed."""
    true_time, jumps = time.time, random.Random(0)
    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: true_time() + jumps.uniform(-3e7, 3e7))
        with contextlib.suppress(RunError):
            loop.train(config, str(workdir))
    assert loop.train(config, str(workdir)).step == 12
    assert_same(final_arrays(workdir), undisturbed)
