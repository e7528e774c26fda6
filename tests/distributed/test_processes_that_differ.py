"""Two processes of which one fails, or has another workdir or other data, or broken data."""

import dataclasses
import re

import pytest

from convit_jax.training import loop
from convit_jax.weights import load_model
from convit_jax.weights.exporting import export_logits
from tests.field.builders import folder


def wait_for_end(processes, tmp_path, seconds=90):
    """Return the exit codes, last lines and logs of the processes."""
    codes = [process.wait(timeout=seconds) for process in processes]
    logs = [(tmp_path / f"{i}.log").read_text() for i in range(len(processes))]
    return codes, [log.strip().splitlines()[-1] for log in logs], logs


def test_a_failing_process_ends_the_other_which_names_it(make_config, start, tmp_path):
    """Metrics are written, and can fail to be, only by the first process."""
    config = make_config(train_for="100000 steps", log_every="1 steps", batch_size=32)
    workdir = tmp_path / "run"
    (workdir / "metrics.jsonl").mkdir(parents=True)
    codes, lines, logs = wait_for_end(start(config, workdir, 2), tmp_path)
    assert codes == [2, 1], logs
    assert lines[1].startswith("train: ended, since another process failed: process 0: ")


def test_separate_workdirs_of_the_same_name_are_reported_before_the_first_step(
    make_config, start, tmp_path
):
    config = make_config(train_for="100000 steps", log_every="1 steps", batch_size=32)
    for index in range(2):
        (tmp_path / str(index)).mkdir()
    codes, _, logs = wait_for_end(start(config, "run", 2, separate_directories=True), tmp_path)
    assert codes == [2, 2], logs
    for log in logs:
        assert "is not one directory for all processes" in log
        assert "wrote there is missing for process 1" in log
    assert "step 1/" not in "".join(logs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: (d / "dog" / "23.png").unlink(), "process 1 47 examples of 2 classes"),
        (lambda d: (d / "dog" / "23.png").rename(d / "dog" / "24.png"), "other files"),
        (lambda d: (d / "dog").rename(d / "cow"), "other class names"),
    ],
)
def test_differing_data_are_reported_before_the_first_step(
    change, message, make_config, start, tmp_path
):
    for index in range(2):
        folder(tmp_path / str(index) / "images", ("cat", "dog"), count=24, mode="RGB")
    change(tmp_path / "1" / "images")
    values = dataclasses.asdict(
        make_config(train_for="100000 steps", log_every="1 steps", batch_size=32)
    )
    values["data"] |= {"train": "folder:images", "eval": "folder:images", "num_workers": 0}
    codes, _, logs = wait_for_end(
        start(values, tmp_path / "run", 2, separate_directories=True), tmp_path
    )
    assert codes == [2, 2], logs
    for log in logs:
        assert "config.data.train=folder:images is not the same for all processes" in log
        assert message in log
    assert "step 1/" not in "".join(logs)


def test_differing_teachers_are_reported_before_the_first_step(
    make_config, workdir, start, tmp_path
):
    for index, scale in enumerate((1.0, 1.001)):
        (tmp_path / str(index)).mkdir()
        model = load_model(workdir)
        model.head.bias[...] = scale * (model.head.bias[...] + 1)
        (tmp_path / str(index) / "teacher.stablehlo").write_bytes(export_logits(model))
    config = make_config(
        train_for="100000 steps", log_every="1 steps", batch_size=32,
        distill={"teacher": "teacher.stablehlo"},
    )  # fmt: skip
    codes, _, logs = wait_for_end(
        start(config, tmp_path / "run", 2, separate_directories=True), tmp_path
    )
    assert codes == [2, 2], logs
    for log in logs:
        assert "config.distill.teacher=teacher.stablehlo is not the same for all processes" in log
        assert "process 1 has another one than process 0" in log
    assert "step 1/" not in "".join(logs)


UNREADABLE = """
from convit_jax.training import restoration
def refuse(*arguments):
    raise {error}
restoration.read_state = refuse
"""
DAMAGED = """
restoration.find_damage = lambda *arguments: "a file is short"
"""


def test_a_checkpoint_that_only_one_process_cannot_read_is_not_renamed(
    make_config, start, tmp_path
):
    """Because of a fault of one machine, or because the processes read different contents."""
    config = make_config(
        train_for="4 steps", checkpoint__every="2 steps", eval_every="4 steps", batch_size=32
    )
    workdir = tmp_path / "run"
    loop.train(config, str(workdir))
    no_permission = UNREADABLE.format(error="PermissionError(13, 'Permission denied')")
    codes, _, logs = wait_for_end(start(config, workdir, 2, faults={1: no_permission}), tmp_path)
    assert codes == [1, 1], logs
    assert "train: the checkpoint of step 4: permission denied" in logs[1]
    assert "train: the checkpoint of step 4 cannot be read by process 1, whose log" in logs[0]

    damaged = UNREADABLE.format(error="ValueError('short')") + DAMAGED
    codes, _, logs = wait_for_end(start(config, workdir, 2, faults={1: damaged}), tmp_path)
    assert codes == [1, 1], logs
    for log in logs:
        assert "step 4 is sound as read by process 0, but damaged as read by the others" in log
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["2", "4"]


@pytest.fixture
def damaged(tmp_path):
    """A hundred images, six of them garbled: more than 4 % of all, but fewer in each half."""
    name = folder(tmp_path / "images", ["cat", "dog"], count=50)
    for class_name in ("cat", "dog"):
        for number in (3, 20, 40):
            (tmp_path / "images" / class_name / f"{number}.png").write_bytes(b"garbled")
    return name


@pytest.mark.parametrize("damaged_split", ["train", "eval"])
def test_two_processes_stop_at_their_common_limit_with_the_same_message(
    damaged_split, damaged, make_config, start, tmp_path
):
    sound = folder(tmp_path / "sound", ["cat", "dog"], count=50)
    names = {"train": sound, "eval": sound} | {damaged_split: damaged}
    config = make_config(
        train_for="3 steps", eval_every="3 steps", log_every="1 steps", batch_size=32,
        eval_batch_size=24,
        data={"image_size": (8,), "mean": (0.3,), "std": (0.4,), "max_broken": 0.04, **names},
    )  # fmt: skip
    codes, _, logs = wait_for_end(start(config, tmp_path / "run", 2), tmp_path)
    assert codes == [1, 1], logs
    (message,) = {re.findall(r"train: at least.*", log)[-1] for log in logs}
    expected = r"train: at least [56] of 100 images are broken and max_broken allows 4"
    assert re.match(expected, message)
