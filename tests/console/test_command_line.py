"""Command lines of train.py, right and wrong ones."""

import errno
import os
import subprocess
import sys

import pytest

from convit_jax.config.files import make_config, split_overrides
from convit_jax.console import command_line
from convit_jax.errors import RunError

CONFIG = "--config=configs/digits.py"


@pytest.fixture
def train(run_python, tmp_path):
    """A function of arguments: train.py's exit code and output."""

    def run(*arguments, workdir=True):
        flags = [f"--workdir={tmp_path / 'run'}"] if workdir else []
        return run_python("train.py", *arguments, *flags)

    return run


def test_help_documents_every_key(train):
    from convit_jax.config import Config
    from convit_jax.config.typed import keys

    completed = train("--help", workdir=False)
    assert completed.returncode == 0
    assert "configs/digits.py --workdir" in completed.stdout
    for key in keys(Config):
        assert f"--config.{key}  (" in completed.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([CONFIG, "--config.batchsize=3"], "no config key 'batchsize': did you mean 'batch_size'"),
        ([CONFIG, "--config.seed=abc"], "--config.seed=abc: expected int"),
        ([CONFIG, "--config.optimizer.accumulate=5"], "a divisor of batch_size"),
        ([CONFIG, "--wrokdir=x"], "no flag --wrokdir: did you mean '--workdir'? (see --help)"),
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
    completed = train(*arguments)
    assert completed.returncode == 2, completed.stderr
    assert message in completed.stderr
    assert "Traceback" not in completed.stderr
    assert completed.stderr.startswith("train: ")
    assert len(completed.stderr.splitlines()) == 1


def test_an_empty_workdir_is_a_mistake(train):
    completed = train(CONFIG, "--workdir=", workdir=False)
    assert (completed.returncode, completed.stderr) == (
        2,
        "train: expected --workdir=DIR, a directory for the run\n",
    )


def test_a_misspelt_key_in_a_config_file_is_one_sentence(train, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from convit_jax.config import template\n"
        "def get_config():\n    c = template()\n    c.optimizer.wieght_decay = 1.0\n    return c\n"
    )
    completed = train(f"--config={path}")
    assert completed.returncode == 2
    assert "weight_decay" in completed.stderr
    assert "Traceback" not in completed.stderr


def test_a_disk_that_fills_up_while_a_checkpoint_is_written_is_one_sentence(
    repository, tmp_path, digits
):
    """A limit on the size of files simulates a full disk: the write itself fails."""
    command = [
        "bash", "-c", 'ulimit -f 500 && exec "$@"', "limited",
        sys.executable, "train.py", CONFIG, f"--workdir={tmp_path}", "--config.train_for=2 steps",
        "--config.checkpoint.every=2 steps", "--config.eval_every=2 steps",
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    completed = subprocess.run(
        command, cwd=repository, env=environment, capture_output=True, text=True, check=False
    )
    assert completed.returncode == 1, completed.stderr
    assert "Traceback" not in completed.stderr
    last = completed.stderr.splitlines()[-1]
    assert last.startswith("train: a checkpoint could not be written to ")
    assert "kept: none. Once that is fixed, start again with the same --workdir" in last


def test_the_last_value_of_a_key_given_twice_counts(repository):
    twice = ["--config.data.mean=(0.1,)", "--config.seed=1", "--config.data.mean=(0.2,)"]
    overrides, others = split_overrides(["--out=x", *twice, "--config.seed=2"])
    assert others == ["--out=x"]
    config = make_config(str(repository / "configs/digits.py"), overrides)
    assert (config.data.mean, config.seed) == ((0.2,), 2)


def test_a_fault_of_the_machine_is_one_sentence(capsys):
    def command():
        raise OSError(errno.EMFILE, "Too many open files", "metrics.jsonl")

    assert command_line.run("train", command) == 1
    message = capsys.readouterr().err
    assert message.startswith("train: too many open files: raise the limit (ulimit -n) (")
    assert "metrics.jsonl" in message


def test_nothing_follows_the_message_of_a_command_that_failed(recwarn):
    """Python reports a coroutine that nobody awaited when it is collected, perhaps at exit."""

    async def save():
        raise AssertionError

    left_behind = [save()]

    def command():
        raise RunError("a checkpoint could not be written")

    assert command_line.run("train", command) == 1
    left_behind.clear()
    assert not recwarn.list


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


def test_a_defect_ends_the_process_like_every_failure(run_python):
    """Otherwise JAX waits for the other processes at exit and ends with SIGABRT."""
    completed = run_python("-c", DEFECT, GLIBC_TUNABLES="")
    assert (completed.returncode, completed.stdout) == (1, "left with 1\n"), completed.stderr
    assert "Traceback (most recent call last)" in completed.stderr
    assert "ZeroDivisionError: a defect" in completed.stderr
