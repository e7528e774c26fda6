"""Every command and program of README.md and docs/ runs as written there.

Placeholders such as W are replaced by names of small files, and flags are appended that shorten the
runs (conftest.py). What is not run is listed here, with the reason.
"""

import pathlib
import re
import shutil

import pytest

from tests.helpers import torch_only
from tests.pages.conftest import fill
from tests.pages.statements import outputs, programs, statements

REPOSITORY = pathlib.Path(__file__).parents[2]
STATEMENTS, PROGRAMS = statements(REPOSITORY), programs(REPOSITORY)

NOT_RUN = {
    r"scripts/test": "it runs the tests, this one among them",
    r".*\b(gcloud|kubectl|sudo)\b|scripts/tpu.sh|export PROJECT|TRAIN=|rm -r /mnt|printf '%s": "it "
    "needs an account of Google Cloud; tests/test_scripts.py has a fake",
    r"sbatch|cd CHECKOUT|export VENV|tail -f slurm|python3.12|\.venv-gpu": "it needs a cluster; "
    "tests/slurm runs the launcher under a Slurm of its own",
    r"mpirun": "it needs several hosts; tests/distributed starts processes as it does",
    r".*configs/letters.py": "trdg, which has the fonts, is not among the requirements",
    r"scripts/check_port": "it needs the released files; tests/test_check_port.py has stand-ins",
    r"scripts/compare_on_gpu": "it needs an NVIDIA GPU",
    r"tensorboard": "it starts a server",
    r"hf auth login|.*hf://ORG/NAME( +#|$)|.*\n.*tracking=|.*tracking=wandb": "it needs an "
    "account; the tests of uploading and tracking have stand-ins",
    r"tfds build|mkdir -p ~/tensorflow": "it needs ImageNet's files",
    r"python scripts/kill_runs": "it takes an hour; tests/faults runs two of its trials",
    r".*:cifar100": "it needs CIFAR-100; tests/config takes a step on a stand-in",
    r"python scripts/choose_recipe": "it takes minutes; tests/test_choose_recipe.py has the choice",
    r"python -m convit_jax.plan .*--sweep": "it compiles for minutes; tests/test_plan.py sweeps",
    r"python .*(convit_small\.safe|china)": "it makes and reads full-size weights",
    r"python -m convit_jax.benchmark input .*timm": "timm is not among the requirements",
    r"python -m convit_jax.benchmark (model|kernel|long-run|input --scale)|LIBTPU_INIT_ARGS=": "it "
    "takes minutes; tests/test_benchmark.py runs it in small",
}


def reason_not_to_run(text):
    reasons = (why for pattern, why in NOT_RUN.items() if re.match(pattern, text, re.DOTALL))
    if "| jq" in text and not shutil.which("jq"):
        return "jq is not installed"
    return next(reasons, None)


@pytest.mark.parametrize(
    "statement",
    [pytest.param(s, id=str(s), marks=torch_only if ".pth" in s.text else ()) for s in STATEMENTS],
)
def test_a_command_runs(statement, inputs, run):
    reason = reason_not_to_run(statement.text)
    if reason:
        pytest.skip(reason)
    text = fill(statement.text)
    results = [inputs / path for path in outputs(text)]
    for path in results:  # of another command
        if path.is_dir() and "--workdir" in text:
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()
    completed = run(text)
    if statement.output is not None:
        assert completed.stdout == statement.output
        return
    assert completed.returncode == 0, completed.stdout[-1000:]
    assert "Traceback" not in completed.stdout
    assert all(path.exists() for path in results)


@pytest.mark.parametrize("page", PROGRAMS)
def test_a_program_runs(page, inputs, fork, environment, tmp_path):
    program = inputs / "program.py"
    program.write_text(fill(PROGRAMS[page]))
    code = fork(
        command=[program.name], directory=str(inputs), environment=environment,
        stdout=str(tmp_path / "stdout"), stderr=str(tmp_path / "stderr"),
    )  # fmt: skip
    assert code == 0, (tmp_path / "stderr").read_text()[-1000:]


def test_reasons_not_to_run_a_command_are_needed():
    texts = [statement.text for statement in STATEMENTS]
    for pattern in NOT_RUN:
        for part in pattern.split("|") if "(" not in pattern else [pattern]:
            assert any(re.match(part, text, re.DOTALL) for text in texts), part
