"""scripts/kill_runs.py: it recognises what a run does; two of its runs."""

import subprocess
import sys

import pytest

from tests.faults.runs import (
    COMPILATION,
    END,
    EVALUATION,
    PHASES,
    SAVING,
    START_UP,
    STEPS,
    Observation,
    in_session,
    left_behind,
)
from tests.faults.trials import KINDS, Campaign, Trial

STARTED = "11:00:00 steps 1 to 40, 87 an epoch of 1400 examples; the first step compiles\n"
TRAINED = "11:00:01 step {0}/40  epoch 0.1  loss 2.3  accuracy 1.00%\n"
EVALUATED = "11:00:01 step {0}/40  epoch 0.1  eval loss 2.3  eval accuracy 1.00%\n"


@pytest.mark.parametrize(
    ("log", "drafts", "phase"),
    [
        ("", (), START_UP),
        ("", ("7.orbax-checkpoint-tmp",), START_UP),  # of the previous start
        (STARTED, (), COMPILATION),
        (STARTED + "11:00:00 step 0/40  epoch 0.00  gate 0.7\n", (), COMPILATION),
        (STARTED + EVALUATED.format(10), (), COMPILATION),  # the missing one of the previous start
        (STARTED + TRAINED.format(9), (), STEPS),
        (STARTED + TRAINED.format(9), ("7.orbax-checkpoint-tmp",), SAVING),
        (STARTED + TRAINED.format(10), (), EVALUATION),
        (STARTED + TRAINED.format(10) + EVALUATED.format(10), (), STEPS),
        (STARTED + TRAINED.format(40), (), EVALUATION),
        (STARTED + TRAINED.format(40) + EVALUATED.format(40), ("40.orbax-checkpoint-tmp",), END),
        (STARTED.replace("steps 1 to", "steps 41 to"), (), END),
    ],
)
def test_the_phase_of_a_run_follows_from_its_log_and_files(log, drafts, phase):
    assert Observation(log, drafts, ()).phase == phase


def test_interruptions_depend_on_the_seed_and_cover_every_phase(tmp_path):
    def plans(seed):
        campaign = Campaign(tmp_path, seed)
        return [Trial(campaign, "digits", number)._choose_phases() for number in range(20)]

    assert plans(0) == plans(0) != plans(1)
    assert {phase for plan in plans(0) for phase in plan} == set(PHASES)
    for plan in plans(0):
        assert END not in plan[:-1]


PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("started", flush=True)
time.sleep(60)
"""


def test_a_process_that_outlives_its_parent_is_found():
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, start_new_session=True
    )
    parent.stdout.readline()
    parent.kill()
    parent.wait()
    (orphan,) = in_session(parent.pid)
    assert left_behind(parent.pid, set(), seconds=0.1) == [
        f"process {orphan} outlives its parent"
    ]  # fmt: skip
    subprocess.run(["kill", str(orphan)], check=True)
    assert left_behind(parent.pid, set(), seconds=20) == []


def test_an_unknown_kind_is_an_error(run_python):
    result = run_python("scripts/kill_runs.py", "digit")
    assert result.returncode == 2
    assert f"no kind 'digit': expected some of {', '.join(KINDS)}" in result.stderr


def test_randomly_interrupted_runs_have_the_same_result(run_python, tmp_path):
    """SIGKILL during an evaluation and a save, SIGTERM to the process and to its group."""
    arguments = ("mixed", "--runs", "2", "--seed", "381", "--keep", tmp_path / "kept")
    result = run_python("scripts/kill_runs.py", *arguments)
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count(": identical") == 2
    assert "SIGKILL in" in result.stdout
    assert "SIGTERM to the group in" in result.stdout
