"""A real Slurm cluster of two nodes on this machine, if Slurm is installed."""

import contextlib
import dataclasses
import os
import pathlib
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping

import pytest

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "sinfo", "squeue")
_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"

# JAX connects to the first node by its name, which must resolve; addresses need no /etc/hosts. The
# GPUs are fake. Jobs in `urgent` preempt others, which have 30 seconds to save.
_CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.%n.pid
SlurmdSpoolDir={directory}/spool.%n
SlurmdParameters=config_overrides
StateSaveLocation={directory}/state
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=30
NodeName=127.0.0.1 NodeHostname={host} Port={ports[1]} CPUs=8 Gres=gpu:2 State=UNKNOWN
NodeName=127.0.0.2 NodeHostname={host} Port={ports[2]} CPUs=8 Gres=gpu:2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2
"""
_ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
_NODES = ("127.0.0.1", "127.0.0.2")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A running Slurm cluster.

    Attributes:
        directory: directory of its files.
        environment: environment of its commands.
        checkout: directory from which jobs are submitted.
    """

    directory: pathlib.Path
    environment: Mapping[str, str]
    checkout: pathlib.Path

    def run(self, *command: str, check: bool = True) -> str:
        """Run a Slurm command and return its output."""
        result = subprocess.run(
            command, env=self.environment, cwd=self.checkout, capture_output=True, text=True,
            check=False, timeout=60,
        )  # fmt: skip
        assert result.returncode == 0 or not check, f"{command}: {result.stderr}"
        return result.stdout

    def job_field(self, job: str, name: str) -> str:
        """Return a field of a job from `scontrol show job`, such as its JobState."""
        output = self.run("scontrol", "show", "job", job, "--oneliner")
        (value,) = re.findall(rf"\b{name}=(\S+)", output)
        return value

    def wait_for(self, job: str, pattern: str, log: pathlib.Path, seconds: float = 300) -> None:
        """Wait for a pattern in the log of a job that has not ended."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, text := log.read_text() if log.exists() else ""):
            state = self.job_field(job, "JobState")
            assert state not in _ENDED, (
                f"{job} is {state} without '{pattern}': {text[-5000:]}\n"
                f"slurmctld: {(self.directory / 'slurmctld.log').read_text()[-3000:]}\n"
                f"slurmd: {(self.directory / 'slurmd.log').read_text()[-3000:]}"
            )
            assert time.monotonic() < deadline, f"no '{pattern}' in {text[-5000:]}"
            time.sleep(0.2)

    def wait_for_end(self, job: str, seconds: float = 300) -> str:
        """Wait until a job has stopped running and return its state: PENDING, if requeued."""
        deadline = time.monotonic() + seconds
        while (state := self.job_field(job, "JobState")) not in _ENDED:
            if state == "PENDING" and self.job_field(job, "Restarts") != "0":
                break
            assert time.monotonic() < deadline, f"{job} is still {state}"
            time.sleep(0.2)
        return state

    def is_idle(self) -> bool:
        """Return whether both nodes are idle."""
        options = ("--noheader", "--partition=all", "--states=idle", "--format=%D")
        return self.run("sinfo", *options, check=False).strip() == "2"

    def restart(self, job: str) -> None:
        """Start a requeued job once both nodes are idle; Slurm would wait for two minutes.

        Slurm counts in seconds, and takes a job that starts in the second in which its last
        start was ended for the one that was ended ("already killed, do not launch batch job").
        """
        assert self.wait_for_end(job) == "PENDING"
        deadline = time.monotonic() + 120
        while not self.is_idle():
            assert time.monotonic() < deadline, f"the nodes of {job} are not idle"
            time.sleep(0.2)
        self.run("scontrol", "update", f"JobId={job}", "StartTime=now+3")


@pytest.fixture(scope="session")
def cluster(repository) -> Iterator[Cluster]:
    """The cluster; tests that need it are skipped if Slurm is not available."""
    missing = [name for name in _PROGRAMS if not shutil.which(name, path=_PATH)]
    if missing:
        pytest.skip(f"no Slurm here, without {missing[0]}: apt-get install slurm-wlm munge")
    with contextlib.ExitStack() as stack:
        # The path of a socket must be short.
        directory = pathlib.Path(tempfile.mkdtemp(prefix="slurm-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("SLURM_")
        } | {"SLURM_CONF": str(directory / "slurm.conf"), "PATH": _PATH}
        _configure(directory)
        stack.callback(_kill_leftovers, directory)
        files = ("key-file=munge.key", "socket=munge.socket", "pid-file=munge.pid",
                 "log-file=munge.log", "seed-file=munge.seed")  # fmt: skip
        flags = [f"--{file.replace('=', f'={directory}/')}" for file in files]
        stack.enter_context(_daemon(directory, environment, "munged", "-F", "--force", *flags))
        _wait_until((directory / "munge.socket").exists, directory)
        stack.enter_context(_daemon(directory, environment, "slurmctld", "-D"))
        for node in _NODES:
            stack.enter_context(_daemon(directory, environment, "slurmd", "-D", "-N", node))
        cluster = Cluster(directory, environment, repository)
        _wait_until(cluster.is_idle, directory)
        stack.callback(_cancel_all, cluster)
        yield cluster


def _configure(directory: pathlib.Path) -> None:
    """Write the configuration of the daemons, with free ports."""
    (directory / "state").mkdir()
    for node in _NODES:
        (directory / f"spool.{node}").mkdir()
    key = directory / "munge.key"
    key.touch(0o600)
    key.write_bytes(secrets.token_bytes(1024))
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(3)]
        for probe in probes:
            probe.bind(("", 0))
        ports = [probe.getsockname()[1] for probe in probes]
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    host = socket.gethostname().partition(".")[0]
    (directory / "slurm.conf").write_text(
        _CONFIG.format(directory=directory, host=host, user=user, ports=ports)
    )
    (directory / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")


@contextlib.contextmanager
def _daemon(
    directory: pathlib.Path, environment: Mapping[str, str], *command: str
) -> Iterator[None]:
    """Run a daemon as a child process in the foreground, ended with SIGTERM."""
    path = shutil.which(command[0], path=_PATH)
    with (directory / f"{command[0]}.log").open("a") as log:
        process = subprocess.Popen(
            [path, *command[1:]], env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until(condition: Callable[[], bool], directory: pathlib.Path) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            logs = [path.read_text().strip() for path in sorted(directory.glob("*.log"))]
            lines = [line for log in logs for line in log.splitlines() if "error" in line.lower()]
            pytest.skip(f"Slurm is installed, but does not start here: {lines[-3:] or logs}")
        time.sleep(0.2)


def _cancel_all(cluster: Cluster) -> None:
    cluster.run("scancel", "--state=PENDING", check=False)
    cluster.run("scancel", "--signal=KILL", "--full", "--state=RUNNING", check=False)
    for _ in range(100):
        if not cluster.run("squeue", "--noheader", check=False).strip():
            return
        time.sleep(0.2)


def _kill_leftovers(directory: pathlib.Path) -> None:
    """Kill remaining processes of the cluster, recognised by their SLURM_CONF."""
    variable = f"SLURM_CONF={directory}/slurm.conf".encode()
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile, or another user's
            if variable in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)


@pytest.fixture
def submit(cluster, tmp_path):
    """A function that submits the launcher and returns the job; running jobs are cancelled later.

    Args:
        flags: flags of the launcher.
        options: options of sbatch.
        python: a shell script in place of the environment's Python.
        variables: environment variables.

    The job's log is `tmp_path`/log; those of an array are `tmp_path`/log.1 and so on.
    """
    jobs = []

    def run(*flags, options=(), python=f'exec {sys.executable} "$@"', **variables):
        environment = tmp_path / "environment"
        (environment / "bin").mkdir(parents=True, exist_ok=True)
        (environment / "bin/python").write_text(f"#!/usr/bin/env bash\n{python}\n")
        (environment / "bin/python").chmod(0o755)
        is_array = any(option.startswith("--array") for option in options)
        log = f"--output={tmp_path}/log{'.%a' if is_array else ''}"
        command = ["sbatch", "--parsable", log, *options, "scripts/slurm.sh", *map(str, flags)]
        variables = {"VENV": str(environment)} | variables
        submitter = dataclasses.replace(cluster, environment=cluster.environment | variables)
        jobs.append(submitter.run(*command).strip())
        return jobs[-1]

    yield run
    for job in jobs:
        cluster.run("scancel", "--signal=KILL", "--full", job, check=False)
        cluster.run("scancel", job, check=False)
