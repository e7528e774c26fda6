"""The workdir of a run that names none."""

import pytest

from convit_jax.training.workdir import default_workdir


@pytest.mark.parametrize(
    ("config", "workdir"),
    [
        ("configs/convit_b.py", "runs/convit_b"),
        ("/home/me/my configs/mine.py", "runs/mine"),
        ("configs/convit_s.py:fraction=0.05", "runs/convit_s-fraction=0.05"),
        ("configs/digits.py:deit", "runs/digits-deit"),
        (
            "configs/finetune.py:data=folder:/a/b,weights=W",
            "runs/finetune-data=folder_a_b_weights=W",
        ),
    ],
)
def test_it_is_named_after_the_config(config, workdir):
    assert default_workdir(config) == workdir


def test_train_says_which_it_uses(run_python, repository, tmp_path):
    config, data = f"--config={repository}/configs/digits.py", "--config.data.train=folder:nothing"
    completed = run_python(repository / "train.py", config, data, cwd=tmp_path)
    first, last = completed.stderr.splitlines()
    assert first == "train: no --workdir: the run's directory is runs/digits"
    assert "nothing" in last
    assert completed.returncode == 2
