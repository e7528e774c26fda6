"""scripts/slurm.sh under a real Slurm, with real runs and with programs in place of train.py."""

import collections
import csv
import json
import os
import pathlib
import re
import shlex
import signal
import sys

import pytest

# A tiny run, of seconds or of hours.
TINY = [
    "--config=configs/digits.py",
    "--config.model.num_heads=4", "--config.model.head_dim=4", "--config.model.depth=2",
    "--config.model.gpsa_layers=1", "--config.model.patch_size=4", "--config.attention_images=0",
    "--config.batch_size=16", "--config.optimizer.warmup=0 steps",
]  # fmt: skip
NEVER = "1000000 steps"


def tiny_run(workdir, train_for, every=NEVER):
    """Return the flags of a tiny run."""
    durations = {"train_for": train_for, "eval_every": every, "checkpoint.every": every}
    return [
        *TINY, f"--workdir={workdir}", "--config.log_every=1 steps",
        *(f"--config.{key}={value}" for key, value in durations.items()),
    ]  # fmt: skip


def saved_steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def steps_of(workdir, name):
    """Return the steps with a metric in metrics.jsonl, in the order of its lines."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if name in line]


def test_two_nodes_train_one_run(cluster, submit, tmp_path):
    workdir = tmp_path / "run"
    job = submit(*tiny_run(workdir, "12 steps", "6 steps"), options=["--nodes=2"])
    state = cluster.wait_for_end(job)
    log = (tmp_path / "log").read_text()
    assert state == "COMPLETED", log
    nodes = cluster.job_field(job, "NodeList")
    assert nodes == "127.0.0.[1-2]"
    assert f"start 1 of job {job}: train.py in 2 process(es) of 0 GPU(s) on {nodes}" in log
    assert "2 device(s) (cpu) in 2 process(es)" in log
    assert saved_steps(workdir)[-1] == 12
    assert steps_of(workdir, "train/loss") == list(range(1, 13))
    assert steps_of(workdir, "eval/loss") == [6, 12]


def test_a_requeued_job_saves_and_resumes_and_ends_if_a_process_dies(cluster, submit, tmp_path):
    workdir, log = tmp_path / "run", tmp_path / "log"
    job = submit(*tiny_run(workdir, NEVER), options=["--nodes=2"])
    cluster.wait_for(job, "step 3/", log)
    cluster.run("scontrol", "requeue", job)
    cluster.restart(job)
    (saved,) = saved_steps(workdir)
    assert f"stopped by SIGTERM after step {saved} of" in log.read_text()
    cluster.wait_for(job, f"step {saved + 3}/", log)
    assert f"start 2 of job {job}" in log.read_text()
    assert f"resuming after step {saved} from" in log.read_text()
    assert "not requeued" not in log.read_text()

    os.kill(process_of(cluster, job, 1), signal.SIGKILL)
    assert cluster.wait_for_end(job, seconds=60) == "FAILED"
    assert "127.0.0.2: task 1: Killed" in log.read_text()
    assert launcher_messages(log)[-1] == "train.py ended with code 137: not requeued"


def process_of(cluster, job, index):
    """Return the PID of a process of a job."""
    expected = {f"SLURM_JOB_ID={job}", f"SLURM_PROCID={index}"}
    expected.add(f"SLURM_CONF={cluster.environment['SLURM_CONF']}")
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            arguments = (process / "cmdline").read_text().split("\0")
            variables = set((process / "environ").read_text().split("\0"))
        except OSError:
            continue  # ended meanwhile
        if "train.py" in arguments and expected <= variables:
            return int(process.name)
    return pytest.fail(f"{job} has no process {index}")


def test_a_job_saves_and_resumes_before_its_time_limit_and_saves_when_cancelled(
    cluster, submit, tmp_path
):
    """Two processes on one node, as with one per GPU."""
    workdir, log = tmp_path / "run", tmp_path / "log"
    options = ["--signal=B:USR1@60", "--ntasks-per-node=2"]
    job = submit(*tiny_run(workdir, NEVER), options=options)
    cluster.wait_for(job, "step 3/", log)
    hours, minutes, _ = map(int, cluster.job_field(job, "RunTime").split(":"))
    cluster.run("scontrol", "update", f"JobId={job}", f"TimeLimit={60 * hours + minutes + 2}")
    cluster.wait_for(job, "saved and requeued", log)
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=UNLIMITED")
    cluster.restart(job)
    (saved,) = saved_steps(workdir)
    text = log.read_text()
    assert "the time limit is near" in text
    assert f"stopped by SIGTERM after step {saved} of" in text
    assert "2 device(s) (cpu) in 2 process(es)" in text
    cluster.wait_for(job, f"resuming after step {saved} from(.|\n)*step {saved + 2}/", log)
    assert cluster.job_field(job, "Restarts") == "1"

    cluster.run("scancel", job)
    assert cluster.wait_for_end(job) == "CANCELLED"
    last = saved_steps(workdir)[-1]
    assert last >= saved + 2
    assert f"stopped by SIGTERM after step {last} of" in log.read_text()
    assert steps_of(workdir, "train/loss") == list(range(1, last + 1))


def launcher_messages(log):
    """Return the messages of the launcher, without their times."""
    return [line.split(" ", 2)[2] for line in log.read_text().splitlines() if "slurm.sh: " in line]


def test_the_tasks_of_an_array_share_the_cells_of_a_study(cluster, submit, tmp_path):
    out = tmp_path / "study"
    job = submit(
        "study", *TINY, "--config.train_for=4 steps", "--config.eval_every=4 steps",
        "--models=convit", "--fractions=1", "--seeds=4", f"--out={out}", options=["--array=0-1"],
    )  # fmt: skip
    for task in (f"{job}_0", f"{job}_1"):
        assert cluster.wait_for_end(task) == "COMPLETED"
    with (out / "results.csv").open() as file:
        assert sorted(row["seed"] for row in csv.DictReader(file)) == ["0", "1", "2", "3"]
    logs = [(tmp_path / f"log.{task}").read_text() for task in (0, 1)]
    trained = [re.findall(r"(\S+): top-1 [\d.]+%", log) for log in logs]
    assert [len(names) for names in trained] == [2, 2], logs
    assert set(collections.Counter(trained[0] + trained[1]).values()) == {1}


# Replaces train.py: on SIGTERM it writes a checkpoint to $RUN and exits with the code of a saved
# run. It sleeps first, because Slurm loses a signal sent at the moment when a task starts.
PROGRAM = """
import os, signal, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
time.sleep(1)
print("trains", flush=True)
signal.sigwait([signal.SIGTERM])
if os.environ["RUN"]:
    os.makedirs(f"{os.environ['RUN']}/checkpoints/{time.time_ns()}")
sys.exit(143)
"""
SAVE_ON_SIGTERM = f"exec {sys.executable} -c {shlex.quote(PROGRAM)}"


def final_state(cluster, job):
    """Wait for the end of a job and return its state, exit code and number of restarts."""
    cluster.wait_for_end(job)
    return [cluster.job_field(job, name) for name in ("JobState", "ExitCode", "Restarts")]


@pytest.mark.parametrize("code", [0, 1, 2, 134])
def test_a_job_that_ended_by_itself_is_not_requeued(code, cluster, submit, tmp_path):
    job = submit(f"--workdir={tmp_path}", python=f"exit {code}", options=["--nodes=2"])
    state = "FAILED" if code else "COMPLETED"
    assert final_state(cluster, job) == [state, f"{code}:0", "0"]
    start, *others = launcher_messages(tmp_path / "log")
    assert start.startswith(f"start 1 of job {job}")
    assert others == ([f"train.py ended with code {code}: not requeued"] if code else [])


def test_if_one_process_fails_and_another_hangs_the_job_ends(cluster, submit, tmp_path):
    python = f'[ "$SLURM_PROCID" = 0 ] || exit 1; {SAVE_ON_SIGTERM}'
    job = submit(f"--workdir={tmp_path}", python=python, options=["--nodes=2"], RUN=str(tmp_path))
    assert final_state(cluster, job) == ["FAILED", "137:0", "0"]
    assert "127.0.0.2: task 1: Exited with exit code 1" in (tmp_path / "log").read_text()
    assert launcher_messages(tmp_path / "log")[1:] == ["train.py ended with code 137: not requeued"]


def test_a_preempted_job_saves_and_is_requeued(cluster, submit, tmp_path):
    log = tmp_path / "log"
    job = submit(
        f"--workdir={tmp_path}", python=SAVE_ON_SIGTERM, options=["--exclusive"], RUN=str(tmp_path)
    )
    cluster.wait_for(job, "trains", log)
    urgent = ["--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null"]
    other = cluster.run("sbatch", "--parsable", *urgent, "--wrap=sleep 2").strip()
    assert cluster.wait_for_end(job) == "PENDING"
    assert launcher_messages(log)[-1] == "saved and requeued"
    assert final_state(cluster, other)[0] == "COMPLETED"
    cluster.restart(job)
    cluster.wait_for(job, f"start 2 of job {job}", log)


def test_a_manual_warning_saves_and_requeues(cluster, submit, tmp_path):
    """In two of three tasks of an array, including the last, which has the array's number.

    SIGTERM to the launcher alone has no effect, because it must not end before its processes.
    """
    job = submit(
        "study",
        f"--out={tmp_path}",
        python=SAVE_ON_SIGTERM,
        options=["--array=1-3"],
        RUN=str(tmp_path),
    )
    for task in (1, 2, 3):
        cluster.wait_for(f"{job}_{task}", "trains", tmp_path / f"log.{task}")
    cluster.run("scancel", "--signal=TERM", "--batch", f"{job}_2")
    for task in (1, 3):
        cluster.run("scancel", "--signal=USR1", "--batch", f"{job}_{task}")
        assert cluster.wait_for_end(f"{job}_{task}") == "PENDING"
        messages = launcher_messages(tmp_path / f"log.{task}")
        assert messages[1:] == ["the time limit is near", "saved and requeued"]
    assert cluster.job_field(f"{job}_2", "JobState") == "RUNNING"


@pytest.mark.parametrize(
    ("saves", "options", "signal_name", "message"),
    [
        (True, [], "TERM", "ended by a SIGTERM that was neither the warning"),
        (False, [], "USR1", "no step was taken in the"),
        (True, ["--no-requeue"], "USR1", "saved, but Slurm does not requeue it: sbatch the same"),
    ],
    ids=["another signal", "no progress", "no requeue"],
)
def test_a_job_that_is_not_requeued_says_why(
    saves, options, signal_name, message, cluster, submit, tmp_path
):
    log = tmp_path / "log"
    job = submit(
        f"--workdir={tmp_path}",
        python=SAVE_ON_SIGTERM,
        options=options,
        RUN=str(tmp_path) if saves else "",
    )
    cluster.wait_for(job, "trains", log)
    batch = ["--batch"] if signal_name == "USR1" else []
    cluster.run("scancel", f"--signal={signal_name}", *batch, job)
    assert final_state(cluster, job) == ["FAILED", "143:0", "0"]
    assert launcher_messages(log)[-1].startswith(message)


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        (1, ["0: 0,1 of 3", "1: 0,1 of 3"]),
        (2, ["0: 0 of 3", "1: 1 of 3", "2: 0 of 3", "3: 1 of 3"]),
    ],
)
def test_every_process_has_its_gpus_and_cores(tasks, expected, cluster, submit, tmp_path):
    python = '[ "$1" = -c ] || echo "$SLURM_PROCID: $JAX_LOCAL_DEVICE_IDS of $SRUN_CPUS_PER_TASK"'
    options = ["--nodes=2", "--gpus-per-node=2", f"--ntasks-per-node={tasks}", "--cpus-per-task=3"]
    job = submit(f"--workdir={tmp_path}", python=python, options=options, JAX_PLATFORMS="")
    assert final_state(cluster, job)[0] == "COMPLETED"
    lines = (tmp_path / "log").read_text().splitlines()
    assert sorted(line for line in lines if line[1] == ":") == expected
    assert f"in {2 * tasks} process(es) of {2 // tasks} GPU(s) on 127.0.0.[1-2]" in lines[0]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [([], ["1/2", "2/2"]), (["--worker=1/1"], ["1/1"] * 2), (["--worker", "1/1"], ["1/1"] * 2)],
)
def test_the_tasks_of_an_array_are_workers(flags, expected, cluster, submit, tmp_path):
    job = submit("study", f"--out={tmp_path}", *flags, python='echo "$*"', options=["--array=7-8"])
    for task, worker in zip((7, 8), expected, strict=True):
        assert final_state(cluster, f"{job}_{task}")[0] == "COMPLETED"
        line = (tmp_path / f"log.{task}").read_text().splitlines()[-1]
        assert re.fullmatch(rf"-m convit_jax.study --out={tmp_path} --worker[ =]{worker}", line)
