"""scripts/kill_runs.py: that it sees what a run does, and its first runs."""

import subprocess
import sys
import time

import pytest

from tests.faults.runs import (
    COMPILATION,
    EVALUATION,
    PHASES,
    SAVING,
    START_UP,
    STEPS,
    THE_END,
    Seen,
    in_session,
    left_behind,
)
from tests.faults.trials import KINDS, Campaign, Trial

BEGUN = "11:00:00 steps 1 to 40, 87 an epoch of 1400 examples; the first step compiles\n"
TRAINED = "11:00:01 step {0}/40  epoch 0.1  loss 2.3  accuracy 1.00%\n"
EVALUATED = "11:00:01 step {0}/40  epoch 0.1  eval loss 2.3  eval accuracy 1.00%\n"


@pytest.mark.parametrize(
    ("log", "drafts", "phase"),
    [
        ("", (), START_UP),
        ("", ("7.orbax-checkpoint-tmp",), START_UP),  # of the start before
        (BEGUN, (), COMPILATION),
        (BEGUN + "11:00:00 step 0/40  epoch 0.00  gate 0.7\n", (), COMPILATION),
        (BEGUN + EVALUATED.format(10), (), COMPILATION),  # which was owed
        (BEGUN + TRAINED.format(9), (), STEPS),
        (BEGUN + TRAINED.format(9), ("7.orbax-checkpoint-tmp",), SAVING),
        (BEGUN + TRAINED.format(10), (), EVALUATION),
        (BEGUN + TRAINED.format(10) + EVALUATED.format(10), (), STEPS),
        (BEGUN + TRAINED.format(40), (), EVALUATION),
        (BEGUN + TRAINED.format(40) + EVALUATED.format(40), ("40.orbax-checkpoint-tmp",), THE_END),
        (BEGUN.replace("steps 1 to", "steps 41 to"), (), THE_END),
    ],
)
def test_what_a_run_does_is_told_from_what_it_says(log, drafts, phase):
    assert Seen(log, drafts, ()).phase == phase


def test_moments_follow_from_the_seed_and_reach_every_phase(tmp_path):
    def plans(seed):
        campaign = Campaign(tmp_path, seed)
        return [Trial(campaign, "digits", number)._plan() for number in range(20)]

    assert plans(0) == plans(0) != plans(1)
    assert {phase for plan in plans(0) for phase in plan} == set(PHASES)
    for plan in plans(0):
        assert THE_END not in plan[:-1]


PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("started", flush=True)
time.sleep(60)
"""


def test_a_process_that_outlives_its_parent_is_told():
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
    deadline = time.monotonic() + 20
    while left_behind(parent.pid, set(), seconds=0.1):
        assert time.monotonic() < deadline


def test_a_kind_that_is_not_known_is_told(repository):
    done = subprocess.run(
        [sys.executable, repository / "scripts" / "kill_runs.py", "digit"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"no kind 'digit': expected some of {', '.join(KINDS)}" in done.stderr


def test_runs_interrupted_at_random_come_to_the_same(repository, tmp_path):
    """By SIGKILL in an evaluation and a save, by SIGTERM to the process and to its group."""
    done = subprocess.run(
        [sys.executable, repository / "scripts" / "kill_runs.py", "mixed", "--runs", "2",
         "--seed", "381", "--keep", tmp_path / "kept"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": identical") == 2
    assert "SIGKILL in" in done.stdout
    assert "SIGTERM to the group in" in done.stdout
