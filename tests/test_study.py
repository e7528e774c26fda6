"""python -m convit_jax.study."""

import csv
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from convit_jax import study
from convit_jax.studies.claims import lock_cell
from convit_jax.system.file_lock import LockedError
from tests.helpers import read_metrics
from tests.processes import wait_until

TINY = """
from convit_jax.config import template
from convit_jax.errors import InputError, nearest

def get_config(variant="convit"):
    if variant not in ("convit", "deit", "other"):
        raise InputError(f"tiny.py:{variant}: {nearest(variant, ('convit', 'deit', 'other'))}")
    config = template()
    config.train_for, config.eval_every, config.log_every = "8 steps", "4 steps", "2 steps"
    config.checkpoint.every = "4 steps"
    config.batch_size, config.eval_batch_size, config.attention_images = 16, 397, 0
    model = config.model
    model.name = "deit_tiny" if variant == "deit" else "convit_tiny"
    model.num_heads, model.head_dim, model.depth, model.patch_size = 4, 2, 2, 4
    model.in_channels = 1
    if variant != "deit":
        model.gpsa_layers = 1
    config.data.image_size, config.data.mean, config.data.std = (8,), (0.3,), (0.4,)
    if variant == "other":
        config.train_for = "9 steps"
    config.optimizer.learning_rate, config.optimizer.learning_rate_batch = 1e-2, 16
    return config
"""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Config file of a ConViT and its DeiT, trained for eight steps."""
    path = tmp_path_factory.mktemp("configs") / "tiny.py"
    path.write_text(TINY)
    return path


@pytest.fixture
def run_study(run_command, tiny):
    """A function of a directory and flags: exit code and output of a study."""

    def run(out, *arguments, **flags):
        flags = {"config": tiny, "out": out, "models": "convit,deit", "fractions": "0.1,1"} | flags
        return run_command(study, *(f"--{k}={v}" for k, v in flags.items()), *arguments)

    return run


def snapshot(directory):
    """Return the modification time of each file."""
    return {p: p.stat().st_mtime_ns for p in sorted(directory.rglob("*")) if p.is_file()}


def results(out):
    """Return the rows of results.csv."""
    return list(csv.DictReader((out / "results.csv").open()))


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """Directory of a study of two models and two fractions, trained once for the module."""
    out = tmp_path_factory.mktemp("studies") / "first"
    assert study.main([f"--config={tiny}", f"--out={out}", "--models=convit,deit",
                       "--fractions=0.1,1"]) == 0  # fmt: skip
    return out


@pytest.fixture
def copied(finished, tmp_path):
    """Copy of that study, which may be changed."""
    return pathlib.Path(shutil.copytree(finished, tmp_path / "copied"))


def test_cells_are_ordinary_runs_and_results_are_theirs(finished):
    names = {f"{m}_fraction{f}_seed0" for m in ("convit", "deit") for f in ("0.1", "1")}
    assert {path.name for path in (finished / "cells").iterdir()} == names
    rows = {row["cell"]: row for row in results(finished)}
    assert rows.keys() == names
    for name, row in rows.items():
        workdir = finished / "cells" / name
        evaluations = [line for line in read_metrics(workdir) if "eval/accuracy" in line]
        assert [line["step"] for line in evaluations] == [4, 8]
        assert float(row["top1"]) == evaluations[-1]["eval/accuracy"]
        assert float(row["best_top1"]) == max(e["eval/accuracy"] for e in evaluations)
        assert (row["steps"], row["seen"]) == ("8", str(8 * 16))
        config = json.loads((workdir / "config.json").read_text())
        assert config["data"]["fraction"] == float(row["fraction"])
        assert config["model"]["name"] == f"{row['model']}_tiny"
        log = (workdir / "log.txt").read_text()
        assert f"epoch of {row['examples']} examples" in log
        assert "finished 8 steps" in log
    top1 = [100 * float(rows[f"{m}_fraction1_seed0"]["top1"]) for m in ("convit", "deit")]
    table = (finished / "table.md").read_text()
    assert f"| 100 % | 1,400 | {top1[0]:.1f} | {top1[1]:.1f} |" in table
    for kind in ("png", "svg"):
        assert (finished / f"efficiency.{kind}").stat().st_size > 1000


def test_finished_cells_are_unchanged_and_others_are_added(copied, run_study):
    before = snapshot(copied / "cells")
    code, output = run_study(copied, "--variants=a,e", models="convit", fractions="0.1")
    assert code == 0, output.err
    assert "2 cells, 1 of them finished" in output.err
    after = snapshot(copied / "cells")
    assert {p: t for p, t in after.items() if p in before} == before
    added = {path.relative_to(copied / "cells").parts[0] for path in after.keys() - before.keys()}
    assert added == {"convit_row-e_fraction0.1_seed0"}
    rows = results(copied)
    assert [r["variant"] for r in rows] == ["a", "a", "e", "", ""]
    assert "# Ablations of convit (paper Table 3)" in output.out
    # Row e is the DeiT: with the same images and seed, it is bit-identical to the deit cell.
    deit = next(r for r in rows if (r["model"], r["fraction"]) == ("deit", "0.1"))
    assert (rows[2]["top1"], rows[2]["loss"]) == (deit["top1"], deit["loss"])


def test_dry_run_lists_the_cells_and_writes_nothing(copied, tmp_path, run_study):
    before = snapshot(copied)
    code, output = run_study(copied, "--dry-run", "--json", fractions="0.1,0.5")
    assert code == 0
    cells = {line["cell"]: line for line in map(json.loads, output.out.splitlines())}
    assert len(cells) == 4
    cell = cells["convit_fraction0.1_seed0"]
    assert (cell["steps"], cell["steps_done"], cell["seconds_left"]) == (8, 8, 0)
    cached = [json.loads(p.read_text()) for p in (copied / "cells").glob("convit_*/result.json")]
    pace = sum(r["seconds"] for r in cached) / sum(r["timed_steps"] for r in cached)
    cell = cells["convit_fraction0.5_seed0"]
    assert (cell["examples"], cell["steps_done"]) == (697, 0)
    assert cell["seconds_left"] == pytest.approx(8 * pace)
    assert snapshot(copied) == before

    code, output = run_study(tmp_path / "new", "--dry-run", fractions="0.1")
    assert (code, output.out.splitlines()[-1]) == (0, "2 cells, 2 to be trained, time unknown")
    flags = ("--dry-run", "--images-per-second=1.28")
    code, output = run_study(tmp_path / "new", *flags, fractions="0.1")
    assert output.out.splitlines()[-1] == "2 cells, 2 to be trained, time 3m20s"
    assert not (tmp_path / "new").exists()


def test_workers_partition_the_cells(tmp_path, run_study):
    listed = []
    for worker in ("1/3", "2/3", "3/3"):
        code, output = run_study(tmp_path / "x", "--dry-run", "--json", worker=worker)
        assert code == 0
        listed.append([json.loads(line)["cell"] for line in output.out.splitlines()])
    names = [name for part in listed for name in part]
    assert len(names) == len(set(names)) == 4
    assert max(map(len, listed)) == 2


def test_cell_locked_by_another_process_is_skipped(copied, run_study):
    (copied / "cells/deit_fraction1_seed0/result.json").unlink()
    before = snapshot(copied / "cells/deit_fraction1_seed0")
    program = (
        "import pathlib, sys; from convit_jax.studies.claims import lock_cell\n"
        "with lock_cell(pathlib.Path(sys.argv[1])): print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, copied / "cells/deit_fraction1_seed0"],
        cwd=pathlib.Path(study.__file__).parents[1], stdin=-1, stdout=-1, text=True,
    ) as other:  # fmt: skip
        assert other.stdout.readline() == "locked\n"
        code, output = run_study(copied)
        assert f"is being trained by process {other.pid} on" in output.err
        other.kill()  # releases the lock
    assert code == 0
    assert "1 of 4 cells are not finished" in output.err
    after = snapshot(copied / "cells/deit_fraction1_seed0")
    assert {p: t for p, t in after.items() if p.name != "claim"} == {
        p: t for p, t in before.items() if p.name != "claim"
    }
    # The run was complete: its result is read again from its workdir.
    code, output = run_study(copied)
    assert code == 0, output.err
    assert len(results(copied)) == 4


def test_cell_is_locked_by_one_process(tmp_path):
    with (
        lock_cell(tmp_path / "cell"),
        pytest.raises(LockedError, match=f"process {os.getpid()} on"),
        lock_cell(tmp_path / "cell"),
    ):
        pass
    with lock_cell(tmp_path / "cell"):
        pass


def test_signal_stops_the_study_and_the_same_command_continues(tmp_path, run_study):
    out = tmp_path / "out"
    first = out / "cells" / "convit_fraction0.1_seed0"
    flags = ["--config.train_for=400 steps", "--config.eval_every=400 steps"]

    def send_signal():
        wait_until((first / "checkpoints" / "4").exists)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=send_signal)
    thread.start()
    code, output = run_study(out, *flags, fractions="0.1")
    thread.join()
    assert code == 128 + signal.SIGTERM
    assert "stopped by SIGTERM in convit_fraction0.1_seed0" in output.err
    assert "run the same command to continue" in output.err
    assert [path.name for path in (out / "cells").iterdir()] == [first.name]
    saved = max(int(path.name) for path in (first / "checkpoints").iterdir())
    assert 4 <= saved < 400

    # The checkpoint interval changes no result, so it may change.
    flags.append("--config.checkpoint.every=400 steps")
    code, output = run_study(out, *flags, fractions="0.1", models="convit")
    assert code == 0, output.err
    assert f"resuming after step {saved}" in (first / "log.txt").read_text()
    steps = [line["step"] for line in read_metrics(first) if "train/loss" in line]
    assert steps == sorted(set(steps))
    result = json.loads((first / "result.json").read_text())
    assert (result["steps"], result["timed_steps"]) == (400, 400 - saved)


def test_signal_during_the_last_evaluation_of_a_cell_stops_the_study(
    tmp_path, run_study, monkeypatch
):
    """The first cell is finished, and no other is started."""
    from convit_jax.training import loop

    evaluate = loop.sum_over_examples

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments)

    monkeypatch.setattr(loop, "sum_over_examples", interrupted)
    out = tmp_path / "out"
    code, output = run_study(out, "--config.eval_every=8 steps", fractions="0.1")
    assert code == 128 + signal.SIGTERM
    assert "1 of 2 cells are not finished" in output.err
    (row,) = results(out)
    assert [path.name for path in (out / "cells").iterdir()] == [row["cell"]]


def test_killed_study_continues_in_the_middle_of_a_cell(tiny, repository, tmp_path, run_study):
    cell = tmp_path / "out" / "cells" / "deit_fraction0.1_seed0"
    flags = ["--config.train_for=400 steps", "--config.eval_every=400 steps"]
    process = subprocess.Popen(
        [sys.executable, "-m", "convit_jax.study", f"--config={tiny}", f"--out={tmp_path / 'out'}",
         "--models=deit", "--fractions=0.1", *flags],
        cwd=repository, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    saved = (cell / "checkpoints" / "8").exists
    wait_until(lambda: saved() or process.poll() is not None, seconds=120)
    assert process.poll() is None, process.stderr.read()
    process.kill()
    process.communicate()
    assert not (cell / "result.json").exists(), "it was too fast to be killed"
    flags.append("--config.checkpoint.every=400 steps")
    code, output = run_study(tmp_path / "out", *flags, models="deit", fractions="0.1")
    assert code == 0, output.err
    assert "resuming after step" in (cell / "log.txt").read_text()
    result = json.loads((cell / "result.json").read_text())
    assert 0 < result["timed_steps"] <= 400 - 8


def test_a_study_can_distil_from_a_run(finished, tmp_path, run_study):
    """A row of Table 4: the students of a finished cell."""
    teacher = finished / "cells" / "convit_fraction1_seed0"
    flags = {"models": "deit", "fractions": "1", "config.distill.teacher": teacher}
    code, _ = run_study(tmp_path / "study", **flags)
    assert code == 0
    (cell,) = (tmp_path / "study" / "cells").iterdir()
    evaluations = [line for line in read_metrics(cell) if "eval/accuracy" in line]
    assert all(0 <= line["eval/agreement"] <= 1 for line in evaluations)
    assert f"distillation from {teacher}" in (cell / "log.txt").read_text()


def test_failed_cell_is_reported_and_the_others_are_trained(tmp_path, run_study, monkeypatch):
    from convit_jax.errors import RunError
    from convit_jax.training import loop

    train = loop.train

    def failing_train(config, workdir, screen):
        if config.model.name == "convit_tiny":
            raise RunError("loss nan at step 6")
        return train(config, workdir, screen)

    monkeypatch.setattr(loop, "train", failing_train)
    code, output = run_study(tmp_path / "out", fractions="0.1")
    assert code == 1
    assert "study: convit_fraction0.1_seed0 failed: loss nan at step 6" in output.err
    (row,) = results(tmp_path / "out")
    assert row["model"] == "deit"
    assert np.isfinite(float(row["top1"]))


def test_models_are_zoo_models_or_arguments_of_the_config(repository, tmp_path, run_study):
    config = repository / "configs" / "digits.py"
    arguments = ("--dry-run", "--json")
    code, output = run_study(tmp_path / "x", *arguments, config=config, fractions="0.05")
    assert code == 0, output.err
    lines = [json.loads(line) for line in output.out.splitlines()]
    assert [(line["cell"], line["steps"]) for line in lines] == [
        ("convit_fraction0.05_seed0", 2800),
        ("deit_fraction0.05_seed0", 2800),
    ]
    # The smallest fraction of the digits is at least one batch.
    assert lines[0]["examples"] >= 64
    plain = tmp_path / "plain.py"
    plain.write_text("from convit_jax.config import template\n\ndef get_config():\n"
                     "    config = template()\n    config.model.depth = 11\n"
                     "    config.data.image_size = (16,)\n    config.batch_size = 16\n"
                     "    return config\n")  # fmt: skip
    code, output = run_study(
        tmp_path / "y", "--dry-run", "--config.model.in_channels=1", "--config.data.mean=(0.5,)",
        "--config.data.std=(0.5,)", config=plain, models="convit_tiny,deit_tiny", fractions="1",
    )  # fmt: skip
    assert code == 0, output.err
    assert "deit_tiny_fraction1_seed0: 1,400 examples, 26,100 steps" in output.out


def test_a_fraction_smaller_than_a_batch_sees_as_many_images(run_study, tmp_path):
    code, output = run_study(tmp_path / "x", fractions="0.01,1", models="deit")
    assert code == 0, output.err
    small, full = sorted(results(tmp_path / "x"), key=lambda row: float(row["fraction"]))
    assert (small["examples"], full["examples"]) == ("10", "1400")
    assert small["steps"] == full["steps"]
    assert small["seen"] == full["seen"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"fractions": "0.001,1"}, "--fractions=0.001: config.data.fraction=0.001 leaves none of"),
        ({"config.batch_size": "1500"}, "config.batch_size=1500 is more than the 1400 training ex"),
        ({"fractions": "0.1,2"}, "--fractions=0.1,2: expected fractions such as 0.05,1"),
        ({"fractions": "0.1,0.10"}, "--fractions=0.1,0.10: expected each only once"),
        ({"fractions": "all"}, "--fractions=all: expected fractions"),
        ({"models": "convit,deti"}, "did you mean 'deit'?"),
        ({"models": "convit_smal"}, "did you mean 'convit_small'?"),
        ({"models": "convit,convit"}, "--models=convit,convit: expected each only once"),
        ({"models": "convit,other"}, "'convit' has config.train_for='8 steps' and 'other' '9 st"),
        ({"variants": "a,h"}, "--variants=a,h: expected rows of Table 3, a to g"),
        (
            {"config.distill.teacher": "/none.npz"},
            "config.distill.teacher: no weights at /none.npz",
        ),
        ({"variants": "b"}, "--variants: the model 'deit' has no GPSA layers"),
        ({"gpsa-layers": "0,9", "models": "convit"}, "gpsa_layers=9: expected 0 to 2"),
        ({"locality-strengths": "-1"}, "--locality-strengths=-1: expected numbers above 0"),
        ({"seeds": "0"}, "--seeds=0: expected at least 1"),
        ({"seeds": "many"}, "invalid int value: 'many'"),
        ({"worker": "3/2"}, "--worker=3/2: expected I/N with I from 1 to N"),
        ({"worker": "0/2"}, "--worker=0/2: expected I/N"),
        ({"images-per-second": "0"}, "--images-per-second=0.0: expected above 0"),
        ({"fraction": "0.1"}, "did you mean '--fractions'?"),
        ({"config.early_stopping.patience": "2"}, "patience=2 of 'convit': expected 0, as a study"),
        ({"config.data.fraction": "0.5"}, "config.data.fraction=0.5 of 'convit': a study sets it"),
        ({"config.batchsize": "3"}, "no config key 'batchsize': did you mean 'batch_size'?"),
        ({"config": "nowhere.py"}, "nowhere.py"),
        ({"out": "gs://bucket/study"}, "--out=gs://bucket/study: workers exclude each other by"),
    ],
)
def test_input_errors_are_one_sentence_and_nothing_is_written(flags, message, tmp_path, run_study):
    out = tmp_path / "out"
    code, output = run_study(**{"out": out} | flags)
    assert code == 2, output.err
    assert message in output.err
    assert len(output.err.splitlines()) == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"config.optimizer.learning_rate": 0.02}, "'convit' has config.optimizer.learning_rate"
         "=0.01 there, 0.02 now"),
        ({"models": "other"}, "holds another study: 'convit' has config.train_for='8 steps' and "
         "'other' '9 steps'"),
        ({"config.batch_size": 8}, "config.batch_size=16 there, 8 now"),
    ],
)  # fmt: skip
def test_directory_of_another_study_is_refused(flags, message, finished, run_study):
    before = snapshot(finished)
    code, output = run_study(finished, **flags)
    assert code == 2
    assert message in output.err
    assert snapshot(finished) == before


def test_keys_without_effect_may_change(finished, run_study):
    arguments = ("--dry-run", "--config.log_every=1 steps", "--config.seed=0")
    code, output = run_study(finished, *arguments, seeds=2)
    assert code == 0, output.err
    assert "8 cells, 4 to be trained" in output.out


def test_directory_with_other_files_is_refused(tmp_path, run_study):
    (tmp_path / "thesis.txt").write_text("mine")
    code, output = run_study(tmp_path)
    assert code == 2
    assert "holds other files (thesis.txt)" in output.err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    code, output = run_study(tmp_path / "thesis.txt")
    assert (code, "it is a file" in output.err) == (2, True)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "study.json").write_text("{")
    code, output = run_study(tmp_path / "bad")
    assert (code, "study.json does not describe a study" in output.err) == (2, True)


def test_help(capsys):
    with pytest.raises(SystemExit) as ended:
        study.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for text_part in ("--fractions", "--dry-run", "--worker", "configs/digits.py:deit", "Table 3"):
        assert text_part in text
