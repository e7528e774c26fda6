"""Two processes of which one fails, or has another workdir or other data than the first."""

import dataclasses

import cv2
import numpy as np
import pytest

from convit_jax.training import loop


@pytest.fixture
def pictures(tmp_path):
    """A function of a name: a directory of two classes of 24 small pictures."""

    def make(name):
        rng = np.random.default_rng(0)
        for class_name in ("cat", "dog"):
            (tmp_path / name / class_name).mkdir(parents=True)
            for i in range(24):
                pixels = rng.integers(0, 256, (10, 10, 3)).astype(np.uint8)
                cv2.imwrite(str(tmp_path / name / class_name / f"{i:02d}.png"), pixels)
        return tmp_path / name

    return make


def ends(processes, tmp_path, seconds=90):
    """(exit code, last line) of each."""
    codes = [process.wait(timeout=seconds) for process in processes]
    logs = [(tmp_path / f"{i}.log").read_text() for i in range(len(processes))]
    return codes, [log.strip().splitlines()[-1] for log in logs], logs


def test_one_that_fails_ends_the_other_which_names_it(make_config, start, tmp_path):
    """Metrics that cannot be written are the first process's alone."""
    config = make_config(train_for="100000 steps", log_every="1 steps", batch_size=32)
    workdir = tmp_path / "run"
    (workdir / "metrics.jsonl").mkdir(parents=True)
    codes, lines, logs = ends(start(config, workdir, 2), tmp_path)
    assert codes == [2, 1], logs
    assert lines[1].startswith("train: ended, since another process failed: process 0: ")


def test_workdirs_of_one_name_are_told_before_the_first_step(make_config, start, tmp_path):
    config = make_config(train_for="100000 steps", log_every="1 steps", batch_size=32)
    for index in range(2):
        (tmp_path / str(index)).mkdir()
    codes, _, logs = ends(start(config, "run", 2, apart=True), tmp_path)
    assert codes == [2, 2], logs
    for log in logs:
        assert "is not one directory for all processes" in log
        assert "is not there for process 1" in log
    assert "step 1/" not in "".join(logs)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: (d / "dog" / "23.png").unlink(), "process 1 47 examples of 2 classes"),
        (lambda d: (d / "dog" / "23.png").rename(d / "dog" / "24.png"), "other files"),
        (lambda d: (d / "dog").rename(d / "cow"), "other names of classes"),
    ],
)
def test_data_that_differ_are_told_before_the_first_step(
    change, words, make_config, start, pictures, tmp_path
):
    for index in range(2):
        pictures(f"{index}/images")
    change(tmp_path / "1" / "images")
    values = dataclasses.asdict(
        make_config(train_for="100000 steps", log_every="1 steps", batch_size=32)
    )
    values["data"] |= {"train": "folder:images", "eval": "folder:images", "num_workers": 0}
    codes, _, logs = ends(start(values, tmp_path / "run", 2, apart=True), tmp_path)
    assert codes == [2, 2], logs
    for log in logs:
        assert "config.data.train=folder:images is not the same for all processes" in log
        assert words in log
    assert "step 1/" not in "".join(logs)


UNREADABLE = """
from convit_jax.training import checkpoints
def refuse(*arguments):
    raise {error}
checkpoints.read_state = refuse
"""
SEEN_AS_DAMAGED = """
checkpoints.find_damage = lambda *arguments: "a file is short"
"""


def test_a_checkpoint_that_one_alone_cannot_read_renames_nothing(make_config, start, tmp_path):
    """The machine of one process refuses it; or what one reads is not what the other does."""
    config = make_config(
        train_for="4 steps", checkpoint__every="2 steps", eval_every="4 steps", batch_size=32
    )
    workdir = tmp_path / "run"
    loop.train(config, str(workdir))
    refused = UNREADABLE.format(error="PermissionError(13, 'Permission denied')")
    codes, _, logs = ends(start(config, workdir, 2, faults={1: refused}), tmp_path)
    assert codes == [1, 1], logs
    assert "train: the checkpoint of step 4: permission denied" in logs[1]
    assert "train: the checkpoint of step 4 cannot be read by process 1, whose log" in logs[0]

    seen = UNREADABLE.format(error="ValueError('short')") + SEEN_AS_DAMAGED
    codes, _, logs = ends(start(config, workdir, 2, faults={1: seen}), tmp_path)
    assert codes == [1, 1], logs
    for log in logs:
        assert "step 4 is sound as process 0 reads it, and damaged as others do" in log
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["2", "4"]
