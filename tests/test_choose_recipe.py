"""scripts/choose_recipe.py"""

import subprocess
import types

import pytest

from tests.helpers import load_module


@pytest.fixture
def script(repository):
    return load_module(repository / "scripts" / "choose_recipe.py")


def test_models_have_equal_weight_and_each_model_s_best_is_reported(script):
    scores = {
        ("1e-3", "0.1"): {"convit": 0.70, "deit": 0.60},
        ("3e-3", "0.1"): {"convit": 0.90, "deit": 0.30},
        ("1e-2", "0.1"): {"convit": 0.60, "deit": 0.65},
    }
    lines = script.choice(scores).splitlines()
    assert lines[0] == "| learning rate | weight decay | convit | deit | mean |"
    assert lines[2] == "| 1e-3 | 0.1 | 70.00 | 60.00 | 65.00 |"
    assert lines[-3:] == [
        "best for all: rate 1e-3, decay 0.1",
        "best for convit: rate 3e-3, decay 0.1",
        "best for deit: rate 1e-2, decay 0.1",
    ]


def test_scores_are_means_over_fractions_and_seeds(script, tmp_path):
    (tmp_path / "results.csv").write_text("model,top1\na,0.5\nb,0.1\na,0.7\nb,0.3\n")
    assert script.read_scores(tmp_path) == {"a": pytest.approx(0.6), "b": pytest.approx(0.2)}


def test_a_model_with_fewer_runs_than_others_is_not_scored_yet(script, tmp_path):
    (tmp_path / "results.csv").write_text("model,top1\na,0.5\na,0.7\nb,0.9\n")
    assert script.read_scores(tmp_path) == {"a": pytest.approx(0.6)}


def test_a_setting_tried_with_some_of_the_models_is_shown_and_can_be_their_best(script):
    scores = {("1e-3", "0.1"): {"convit": 0.9, "deit": 0.6}, ("3e-4", "0.1"): {"deit": 0.7}}
    lines = script.choice(scores).splitlines()
    assert lines[2:4] == ["| 1e-3 | 0.1 | 90.00 | 60.00 | 75.00 |", "| 3e-4 | 0.1 |  | 70.00 |  |"]
    assert lines[-3:] == [
        "best for all: rate 1e-3, decay 0.1",
        "best for convit: rate 1e-3, decay 0.1",
        "best for deit: rate 3e-4, decay 0.1",
    ]


def test_the_choice_is_among_all_settings_that_were_tried(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "try_setting", lambda *_: 0)
    for rate, top1 in (("1e-3", 0.5), ("3e-3", 0.6)):
        (tmp_path / f"rate{rate}_decay0.1").mkdir()
        (tmp_path / f"rate{rate}_decay0.1" / "results.csv").write_text(f"model,top1\na,{top1}\n")
    script.main([str(tmp_path), "--learning-rates", "1e-3"])
    assert "best for a: rate 3e-3, decay 0.1" in (tmp_path / "choice.md").read_text()


def test_it_ends_with_the_study_that_fails(script, tmp_path, monkeypatch, capsys):
    """The study has said what was wrong; a traceback or a choice without it would hide that."""
    commands = []
    monkeypatch.setattr(subprocess, "run", _study_that_ends(2, commands))
    assert script.main([str(tmp_path), "--models", "convti", "--learning-rates", "1e-3,3e-3"]) == 2
    assert len(commands) == 1
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr() == ("", "")


def _study_that_ends(exit_code, commands):
    def run(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, exit_code)

    return run


def test_test_images_are_not_used(script, tmp_path, monkeypatch):
    """The study that it starts is valid and uses only training images."""
    from convit_jax import study

    commands = []
    monkeypatch.setattr(subprocess, "run", _study_that_ends(0, commands))
    flags = types.SimpleNamespace(
        data="digits", models="convit,deit", fractions="0.1,1", seeds=1, overrides=[]
    )
    script.try_setting(tmp_path / "out", ("1e-3", "0.05"), flags)
    monkeypatch.undo()
    (command,) = commands
    arguments = command[command.index("convit_jax.study") + 1 :]
    assert study.main([*arguments, "--dry-run"]) == 0
    data = dict(argument.split("=", 1) for argument in arguments if "data." in argument)
    assert data == {
        "--config.data.train": "digits:train[:75%]",
        "--config.data.eval": "digits:train[75%:]",
    }
