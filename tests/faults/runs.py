"""Starts of a run, watched from outside: what it is doing, and what is left when it is gone."""

import contextlib
import dataclasses
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

START_UP, COMPILATION, STEPS = "start-up", "compilation", "steps"
EVALUATION, SAVING, THE_END = "evaluation", "saving", "the end"
PHASES = (START_UP, COMPILATION, STEPS, EVALUATION, SAVING, THE_END)

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
# Another data set than the digits: photographs in colour, cut and flipped.
PICTURES = {
    "data.mean": (0.5, 0.5, 0.5),
    "data.std": (0.25, 0.25, 0.25),
    "model.in_channels": 3,
    "augment.crop": "random_resized",
    "augment.flip": 0.5,
}

# train.py, but for its patience with other processes of the run.
_IMPATIENT = """
import functools, runpy, sys
from convit_jax.training import processes
processes.join_processes = functools.partial(
    processes.join_processes, heartbeat_seconds=10, timeout_seconds=40
)
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""

_BEGINS = "the first step compiles"
_TRAINED = re.compile(r"step (\d+)/\d+  epoch \S+  loss ")
_EVALUATED = re.compile(r"step (\d+)/\d+  epoch \S+  eval loss ")
_LOOK_EVERY = 0.001  # seconds
_PATIENCE = 300.0  # seconds: a run of a few that takes longer hangs


class StuckError(Exception):
    """A run does not go on, or does not end."""


@dataclasses.dataclass(frozen=True)
class Seen:
    """A run seen from outside.

    Attributes:
        log: what its first process has said.
        drafts: names of checkpoints that are being written.
        saved: steps of those that are whole.
    """

    log: str
    drafts: tuple[str, ...]
    saved: tuple[int, ...]

    @property
    def trained(self) -> list[int]:
        """Steps of which it has told the loss."""
        return [int(step) for step in _TRAINED.findall(self.log)]

    @property
    def evaluated(self) -> list[int]:
        """Steps of which it has told an evaluation."""
        return [int(step) for step in _EVALUATED.findall(self.log)]

    @property
    def begins(self) -> bool:
        """Whether it has read its data and its checkpoint."""
        return _BEGINS in self.log

    @property
    def phase(self) -> str:
        """What it is doing, one of PHASES."""
        trained, evaluated = self.trained, self.evaluated
        if not self.begins:
            return START_UP
        if LAST_STEP in evaluated or f"steps {LAST_STEP + 1} to" in self.log:
            return THE_END
        if not trained:
            return COMPILATION
        if self.drafts:
            return SAVING
        evaluates = trained[-1] % EVAL_EVERY == 0 and trained[-1] not in evaluated
        return EVALUATION if evaluates else STEPS


class Start:
    """One start of a run: a process, or several that train together."""

    def __init__(
        self,
        workdir: pathlib.Path,
        logs: Sequence[pathlib.Path],
        config: Mapping[str, object],
        environment: Mapping[str, str],
        places: Sequence[pathlib.Path] = (),
    ) -> None:
        """Starts it, as a user does.

        Args:
            workdir: of the run.
            logs: what each process says goes there; as many processes as there are logs.
            config: configuration keys that are not configs/digits.py's.
            environment: variables, besides this process's.
            places: where each process runs; empty for the checkout.
        """
        self.workdir, self.logs = workdir, list(logs)
        self.processes: list[subprocess.Popen[bytes]] = []
        flags = [f"--config={ROOT}/configs/digits.py", f"--workdir={workdir}"]
        flags += [f"--config.{key}={value}" for key, value in config.items()]
        together = len(self.logs) > 1
        port = _free_port() if together else 0
        for index, log in enumerate(self.logs):
            told = {"PYTHONPATH": str(ROOT)}
            command = [sys.executable, f"{ROOT}/train.py"]
            if together:
                told |= {
                    "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
                    "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                    "JAX_NUM_PROCESSES": str(len(self.logs)),
                    "JAX_PROCESS_ID": str(index),
                }
                program = _IMPATIENT.replace('"train.py"', repr(f"{ROOT}/train.py"))
                command = [sys.executable, "-c", program]
            with log.open("w") as file:
                process = subprocess.Popen(
                    [*command, *flags],
                    cwd=places[index] if places else ROOT,
                    env=os.environ | dict(environment) | told,
                    stdout=file,
                    stderr=file,
                    start_new_session=True,
                )
            self.processes.append(process)

    def seen(self) -> Seen:
        """What it looks like now."""
        with contextlib.suppress(FileNotFoundError):  # it may not have come so far
            names = sorted(os.listdir(self.workdir / "checkpoints"))  # noqa: PTH208  (many times)
            drafts = tuple(name for name in names if "orbax-checkpoint-tmp" in name)
            saved = tuple(sorted(int(name) for name in names if name.isdigit()))
            return Seen(self.logs[0].read_text(errors="replace"), drafts, saved)
        return Seen(self.logs[0].read_text(errors="replace"), (), ())

    def ended(self) -> bool:
        """Whether some process has ended."""
        return any(process.poll() is not None for process in self.processes)

    def watch(self, until: Callable[[Seen], bool]) -> bool:
        """Waits until something is seen; whether it was, before some process ended.

        Raises:
            StuckError: it is not, in a time in which a run is over.
        """
        deadline = time.monotonic() + _PATIENCE
        while not until(self.seen()):
            if self.ended():
                return until(self.seen())
            if time.monotonic() > deadline:
                raise StuckError(f"nothing goes on for {_PATIENCE:g} s")
            time.sleep(_LOOK_EVERY)
        return True

    def codes(self, seconds: float = _PATIENCE) -> list[int]:
        """Waits for the end of all processes: their exit codes, negative for signals.

        Raises:
            StuckError: some does not end.
        """
        deadline = time.monotonic() + seconds
        try:
            return [p.wait(max(deadline - time.monotonic(), 0.1)) for p in self.processes]
        except subprocess.TimeoutExpired as error:
            raise StuckError(f"a process has not ended after {seconds:g} s") from error

    def close(self) -> None:
        """Ends whatever still runs."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            for pid in in_session(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def in_session(leader: int) -> list[int]:
    """Processes of the session that a process began, those that are dead left out."""
    found = []
    for pid, stat in _stats():
        state, _, _, session = stat.rpartition(")")[2].split()[:4]
        if int(session) == leader and state != "Z":
            found.append(pid)
    return found


def shared_memory(leader: int) -> set[pathlib.Path]:
    """Segments of shared memory that the processes of a session have mapped."""
    found = set()
    for pid in in_session(leader):
        # It may end meanwhile.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            maps = pathlib.Path(f"/proc/{pid}/maps").read_text()
            found |= {pathlib.Path(name) for name in re.findall(r"/dev/shm/convit_jax_\w+", maps)}
    return found


def left_behind(leader: int, segments: set[pathlib.Path], seconds: float = 20.0) -> list[str]:
    """What a process that is gone leaves after some seconds: its workers, its shared memory."""
    deadline = time.monotonic() + seconds
    while True:
        workers = in_session(leader)
        left = [f"process {pid} outlives its parent" for pid in workers]
        left += [f"{path} is left" for path in sorted(segments) if path.exists()]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)


def _stats() -> Iterator[tuple[int, str]]:
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            yield int(path.name), (path / "stat").read_text()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]
