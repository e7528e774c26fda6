"""The wheel: it carries configs and data, and its commands run in any directory."""

import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.helpers import read_metrics

DIRECTORIES = "convit_jax", "configs"
FILES = "setup.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE"


def files_in(directory):
    paths = (p for p in directory.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {p.relative_to(directory).as_posix() for p in paths}


@pytest.fixture(scope="module")
def site(repository, tmp_path_factory):
    """A directory that holds what pip installs from the wheel."""
    directory = tmp_path_factory.mktemp("wheel")
    for name in DIRECTORIES:  # pip would leave its build/ in the checkout
        shutil.copytree(repository / name, directory / "source" / name)
    for name in FILES:
        shutil.copy(repository / name, directory / "source")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    subprocess.run([*pip, "--wheel-dir", directory, directory / "source"], check=True)
    (wheel,) = directory.glob("convit_jax-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory / "site")
    return directory / "site"


@pytest.fixture
def run_installed(site, run_python, tmp_path):
    """A function that runs Python in an empty directory, with the installed package."""
    return lambda *arguments: run_python(*arguments, cwd=tmp_path, PYTHONPATH=str(site))


def test_the_wheel_carries_all_files_of_the_package_and_the_configs(repository, site):
    package = files_in(repository / "convit_jax")
    assert any(not name.endswith(".py") for name in package)
    configs = {f"configs/{name}" for name in files_in(repository / "configs")}
    assert files_in(site / "convit_jax") == package | configs
    assert {p.name for p in site.iterdir() if p.suffix != ".dist-info"} == {"convit_jax"}


def test_train_runs_in_any_directory(run_installed, tmp_path):
    result = run_installed(
        "-m", "convit_jax.train", "--config=configs/digits.py", "--config.train_for=1 steps"
    )
    assert result.returncode == 0, result.stderr
    assert read_metrics(tmp_path / "runs" / "digits")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("configs/convit_bb.py", "did you mean 'configs/convit_b.py'?"),
        ("finetune:data=digits:train", "weights= is missing"),
        ("convit_s:fractoin=0.1", "did you mean 'fraction'?"),
    ],
)
def test_the_configs_carried_are_those_that_messages_name(run_installed, config, message):
    result = run_installed("-m", "convit_jax.train", f"--config={config}")
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
