"""train.py as a user types it, with what a user types wrong."""

import errno
import os
import subprocess
import sys

import pytest

from convit_jax.config.files import make_config, split_overrides
from convit_jax.console import command_line

CONFIG = "--config=configs/digits.py"


@pytest.fixture
def train(repository, tmp_path):
    """A function of arguments: train.py's exit code and what it said."""

    def run(*arguments, workdir=True):
        command = [sys.executable, "train.py", *arguments]
        if workdir:
            command.append(f"--workdir={tmp_path / 'run'}")
        return subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)

    return run


def test_help_teaches_every_key(train):
    from convit_jax.config import Config
    from convit_jax.config.typed import keys

    done = train("--help", workdir=False)
    assert done.returncode == 0
    assert "configs/digits.py --workdir" in done.stdout
    for key in keys(Config):
        assert f"--config.{key}  (" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([CONFIG, "--config.batchsize=3"], "no config key 'batchsize': did you mean 'batch_size'"),
        ([CONFIG, "--config.seed=abc"], "--config.seed=abc: expected int"),
        ([CONFIG, "--config.optimizer.accumulate=5"], "a divisor of batch_size"),
        ([CONFIG, "--wrokdir=x"], "Unknown command line flag 'wrokdir'. Did you mean: workdir"),
        ([CONFIG, "stray"], "unexpected argument 'stray'"),
        (["--config=configs/digit.py"], "get_config(); did you mean 'configs/digits.py'?"),
        (["--config=configs/imagenet.py"], "no such file that defines get_config()"),
        (["--config", "configs/x.py:fraction=1"], "config=configs/x.py: no such file"),
        ([CONFIG + ":dei"], "did you mean 'deit'"),
        ([], "expected --config=configs/FILE.py"),
        ([CONFIG, "--config.data.train=digits:trian"], "no split 'trian', did you mean 'train'"),
    ],
)
def test_a_mistake_is_one_sentence_and_code_2(train, arguments, message, digits):
    done = train(*arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("train: ")
    assert len(done.stderr.splitlines()) == 1


def test_no_workdir_is_a_mistake(train):
    done = train(CONFIG, workdir=False)
    assert (done.returncode, done.stderr) == (
        2,
        "train: expected --workdir=DIR, a directory for the run\n",
    )


def test_a_config_file_with_a_misspelt_key_is_told_in_a_sentence(train, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from convit_jax.config import template\n"
        "def get_config():\n    c = template()\n    c.optimizer.wieght_decay = 1.0\n    return c\n"
    )
    done = train(f"--config={path}")
    assert done.returncode == 2
    assert "weight_decay" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_disk_that_fills_up_while_a_checkpoint_is_written_is_one_sentence(
    repository, tmp_path, digits
):
    """A limit on the size of a file stands for the full disk: the write itself fails."""
    import os

    command = [
        "bash", "-c", 'ulimit -f 500 && exec "$@"', "limited",
        sys.executable, "train.py", CONFIG, f"--workdir={tmp_path}", "--config.train_for=2 steps",
        "--config.checkpoint.every=2 steps", "--config.eval_every=2 steps",
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(
        command, cwd=repository, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("train: a checkpoint could not be written to ")
    assert "kept: none. Once that is fixed, start again with the same --workdir" in last


def test_of_a_key_that_is_given_twice_the_last_counts(repository):
    twice = ["--config.data.mean=(0.1,)", "--config.seed=1", "--config.data.mean=(0.2,)"]
    overrides, rest = split_overrides(["--out=x", *twice, "--config.seed=2"])
    assert rest == ["--out=x"]
    config = make_config(str(repository / "configs/digits.py"), overrides)
    assert (config.data.mean, config.seed) == ((0.2,), 2)


def test_a_fault_of_the_machine_is_one_sentence(capsys):
    def command():
        raise OSError(errno.EMFILE, "Too many open files", "metrics.jsonl")

    assert command_line.run("train", command) == 1
    said = capsys.readouterr().err
    assert said.startswith("train: too many open files: raise the limit (ulimit -n) (")
    assert "metrics.jsonl" in said


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        command_line.run("train", lambda: 1 // 0)


DEFECT = """
import runpy, sys
import jax
from convit_jax.console import command_line
from convit_jax.distributed import processes

def run(name, command):
    raise ZeroDivisionError("a defect")

def exit_process(code):
    print("left with", code)
    sys.exit(code)

command_line.run, processes.exit_process = run, exit_process
runpy.run_path("train.py", run_name="__main__")
"""


def test_a_defect_leaves_as_every_failure_does(repository):
    """Otherwise JAX waits at its exit for the other processes, and ends with SIGABRT."""
    done = subprocess.run(
        [sys.executable, "-c", DEFECT], cwd=repository, env=os.environ | {"GLIBC_TUNABLES": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "left with 1\n"), done.stderr
    assert "Traceback (most recent call last)" in done.stderr
    assert "ZeroDivisionError: a defect" in done.stderr
