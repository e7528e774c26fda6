"""Starting runs and observing from outside what they do and what they leave behind."""

import contextlib
import dataclasses
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from tests.processes import free_port, process_variables, simulated_devices

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

START_UP, COMPILATION, STEPS = "start-up", "compilation", "steps"
EVALUATION, SAVING, END = "evaluation", "saving", "the end"
PHASES = (START_UP, COMPILATION, STEPS, EVALUATION, SAVING, END)

LAST_STEP, EVAL_EVERY = 40, 10
CONFIG = {
    "train_for": f"{LAST_STEP} steps",
    "batch_size": 16,
    "eval_batch_size": 128,
    "eval_every": f"{EVAL_EVERY} steps",
    "log_every": "3 steps",
    "attention_images": 32,
    "ema_decay": 0.9,
    "checkpoint.every": "7 steps",
    "data.num_workers": 1,
    "model.depth": 2,
    "model.gpsa_layers": 1,
    "model.num_heads": 4,
    "model.head_dim": 4,
    "model.patch_size": 4,
    "model.drop_path_rate": 0.2,
    "optimizer.accumulate": 2,
    "optimizer.learning_rate": 1e-2,
    "optimizer.warmup": "4 steps",
}
# Instead of the digits: colour photographs, cropped and flipped.
PICTURES = {
    "data.mean": (0.5, 0.5, 0.5),
    "data.std": (0.25, 0.25, 0.25),
    "model.in_channels": 3,
    "augment.crop": "random_resized",
    "augment.flip": 0.5,
}

# train.py with shorter timeouts for the other processes of the run.
_SHORT_TIMEOUTS = """
import functools, runpy, sys
from convit_jax.distributed import processes
processes.join_processes = functools.partial(
    processes.join_processes, heartbeat_seconds=10, timeout_seconds=40
)
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""

_TRAINING_MESSAGE = "the first step compiles"
_TRAINED = re.compile(r"step (\d+)/\d+  epoch \S+  loss ")
_EVALUATED = re.compile(r"step (\d+)/\d+  epoch \S+  eval loss ")
_POLL_SECONDS = 0.001
_TIMEOUT = 300.0  # seconds: a run takes a few unless it hangs


class StuckError(Exception):
    """A run hangs: it makes no progress, or does not end."""


@dataclasses.dataclass(frozen=True)
class Observation:
    """A run observed from outside.

    Attributes:
        log: log of the first process.
        drafts: names of checkpoints that are being written.
        saved: steps of complete checkpoints.
    """

    log: str
    drafts: tuple[str, ...]
    saved: tuple[int, ...]

    @property
    def trained(self) -> list[int]:
        """Steps whose loss was logged."""
        return [int(step) for step in _TRAINED.findall(self.log)]

    @property
    def evaluated(self) -> list[int]:
        """Steps whose evaluation was logged."""
        return [int(step) for step in _EVALUATED.findall(self.log)]

    @property
    def has_started(self) -> bool:
        """Whether the run has read its data and its checkpoint."""
        return _TRAINING_MESSAGE in self.log

    @property
    def phase(self) -> str:
        """The phase of the run, one of PHASES."""
        trained, evaluated = self.trained, self.evaluated
        if not self.has_started:
            return START_UP
        if LAST_STEP in evaluated or f"steps {LAST_STEP + 1} to" in self.log:
            return END
        if not trained:
            return COMPILATION
        if self.drafts:
            return SAVING
        is_evaluating = trained[-1] % EVAL_EVERY == 0 and trained[-1] not in evaluated
        return EVALUATION if is_evaluating else STEPS


class Start:
    """One start of a run, with one process or several."""

    def __init__(
        self,
        workdir: pathlib.Path,
        logs: Sequence[pathlib.Path],
        config: Mapping[str, object],
        environment: Mapping[str, str],
        directories: Sequence[pathlib.Path] = (),
    ) -> None:
        """Start the run as a user does.

        Args:
            workdir: the workdir.
            logs: the log file of each process; there are as many processes as logs.
            config: configuration keys that differ from configs/digits.py.
            environment: variables added to this process's.
            directories: working directory of each process; empty for the checkout.
        """
        self.workdir, self.logs = workdir, list(logs)
        self.processes: list[subprocess.Popen[bytes]] = []
        flags = [f"--config={ROOT}/configs/digits.py", f"--workdir={workdir}"]
        flags += [f"--config.{key}={value}" for key, value in config.items()]
        several_processes = len(self.logs) > 1
        port = free_port() if several_processes else 0
        for index, log in enumerate(self.logs):
            variables = {"PYTHONPATH": str(ROOT)}
            command = [sys.executable, f"{ROOT}/train.py"]
            if several_processes:
                variables |= simulated_devices(1) | process_variables(index, len(self.logs), port)
                program = _SHORT_TIMEOUTS.replace('"train.py"', repr(f"{ROOT}/train.py"))
                command = [sys.executable, "-c", program]
            with log.open("w") as file:
                process = subprocess.Popen(
                    [*command, *flags],
                    cwd=directories[index] if directories else ROOT,
                    env=os.environ | dict(environment) | variables,
                    stdout=file,
                    stderr=file,
                    start_new_session=True,
                )
            self.processes.append(process)

    def observe(self) -> Observation:
        """Return the current state of the run."""
        names: list[str] = []
        with contextlib.suppress(FileNotFoundError):  # not created yet
            names = sorted(os.listdir(self.workdir / "checkpoints"))  # noqa: PTH208  (for speed)
        drafts = tuple(name for name in names if "orbax-checkpoint-tmp" in name)
        saved = tuple(sorted(int(name) for name in names if name.isdigit()))
        return Observation(self.logs[0].read_text(errors="replace"), drafts, saved)

    def has_ended(self) -> bool:
        """Return whether some process has ended."""
        return any(process.poll() is not None for process in self.processes)

    def wait_until(self, condition: Callable[[Observation], bool]) -> bool:
        """Wait for a condition and return whether it held before some process ended.

        Raises:
            StuckError: it does not hold within the time of a whole run.
        """
        deadline = time.monotonic() + _TIMEOUT
        while not condition(self.observe()):
            if self.has_ended():
                return condition(self.observe())
            if time.monotonic() > deadline:
                raise StuckError(f"no progress for {_TIMEOUT:g} s")
            time.sleep(_POLL_SECONDS)
        return True

    def wait(self, seconds: float = _TIMEOUT) -> list[int]:
        """Wait for all processes and return their exit codes, negative for signals.

        Raises:
            StuckError: a process does not end.
        """
        deadline = time.monotonic() + seconds
        try:
            return [p.wait(max(deadline - time.monotonic(), 0.1)) for p in self.processes]
        except subprocess.TimeoutExpired as error:
            raise StuckError(f"a process has not ended after {seconds:g} s") from error

    def close(self) -> None:
        """Kill all remaining processes."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            for pid in in_session(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def in_session(leader: int) -> list[int]:
    """Return the live processes of the session with this leader."""
    pids = []
    for pid, stat in _process_stats():
        state, _, _, session = stat.rpartition(")")[2].split()[:4]
        if int(session) == leader and state != "Z":
            pids.append(pid)
    return pids


def shared_memory(leader: int) -> set[pathlib.Path]:
    """Return the segments of shared memory mapped by the processes of a session."""
    segments = set()
    for pid in in_session(leader):
        # The process may end meanwhile.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            maps = pathlib.Path(f"/proc/{pid}/maps").read_text()
            names = re.findall(r"/dev/shm/convit_jax_\w+", maps)
            segments |= {pathlib.Path(name) for name in names}
    return segments


def left_behind(leader: int, segments: set[pathlib.Path], seconds: float = 20.0) -> list[str]:
    """Describe the workers and shared memory that remain some seconds after a process ended."""
    deadline = time.monotonic() + seconds
    while True:
        remains = [f"process {pid} outlives its parent" for pid in in_session(leader)]
        remains += [f"{path} is left" for path in sorted(segments) if path.exists()]
        if not remains or time.monotonic() > deadline:
            return remains
        time.sleep(0.05)


def _process_stats() -> Iterator[tuple[int, str]]:
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile
            yield int(path.name), (path / "stat").read_text()
