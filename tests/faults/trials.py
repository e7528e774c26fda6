"""Runs that are interrupted at random moments and resumed until they finish.

Each is compared with an uninterrupted run of its kind. The moments are a function of (seed, kind,
number); what a run does at that moment depends on the speed of the machine.
"""

import contextlib
import dataclasses
import os
import pathlib
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Mapping

import cv2
import numpy as np

from tests.faults.comparison import differences
from tests.faults.runs import (
    COMPILATION,
    CONFIG,
    END,
    EVAL_EVERY,
    EVALUATION,
    LAST_STEP,
    PHASES,
    PICTURES,
    SAVING,
    START_UP,
    STEPS,
    Observation,
    Start,
    StuckError,
    left_behind,
    shared_memory,
)

_PEER_TIMEOUT = 60.0  # seconds for the other processes of a run to end after one has
# Texts that a log must not contain. Only after SIGKILL may a worker, whose parent is gone before it
# sent any work, log a traceback.
_NEVER_LOGGED, _LOGGED_ONLY_IF_KILLED = "damaged", "Traceback (most recent call last)"


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of run and its interruptions.

    Attributes:
        description: description for the help text.
        num_runs: number of runs in a full campaign.
        interruptions: functions (trial, start) that interrupt a run, by name.
        config: configuration keys added to CONFIG.
        num_processes: number of processes that train together.
        pictures: whether to train on photographs instead of digits.
        phases: the phases in which to interrupt it.
    """

    description: str
    num_runs: int
    interruptions: Mapping[str, Callable[["Trial", Start], None]]
    config: Mapping[str, object] = dataclasses.field(default_factory=dict)
    num_processes: int = 1
    pictures: bool = False
    phases: tuple[str, ...] = PHASES


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of an interrupted run.

    Attributes:
        interruptions: (interruption, phase), in order.
        findings: what is wrong; empty if the result equals that of the uninterrupted run.
        directory: directory of the workdir and the logs.
    """

    interruptions: tuple[tuple[str, str], ...]
    findings: tuple[str, ...]
    directory: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Pace:
    """Durations of the phases of a run with an empty compilation cache, in seconds."""

    start_up: float
    compilation: float
    evaluation: float
    end: float


@dataclasses.dataclass(frozen=True)
class UninterruptedRun:
    """The run with which the interrupted runs of a kind are compared.

    Attributes:
        workdir: its workdir.
        pace: the durations of its phases.
        caches: environment variables with the directories of its caches.
    """

    workdir: pathlib.Path
    pace: Pace
    caches: Mapping[str, str]


class Campaign:
    """Runs of all kinds in one directory."""

    def __init__(self, directory: pathlib.Path, seed: int) -> None:
        """Create a campaign; the seed determines the moments of the interruptions."""
        self.directory, self.seed = directory, seed
        self._uninterrupted: dict[tuple[str, ...], UninterruptedRun] = {}
        self._lock = threading.Lock()

    def run(self, name: str, number: int) -> Outcome:
        """Interrupt a run and compare its result."""
        return Trial(self, name, number).run()

    def uninterrupted_run(self, kind: Kind) -> UninterruptedRun:
        """Return the uninterrupted run of a kind, trained on the first call.

        Raises:
            StuckError: it hangs or fails.
        """
        key = (str(kind.config), str(kind.num_processes), str(kind.pictures))
        with self._lock:
            if key not in self._uninterrupted:
                directory = self.directory / f"uninterrupted-{len(self._uninterrupted)}"
                directory.mkdir()
                self._uninterrupted[key] = self._train_uninterrupted(kind, directory)
            return self._uninterrupted[key]

    def start(
        self, kind: Kind, directory: pathlib.Path, name: str, caches: Mapping[str, str]
    ) -> Start:
        """Start a run of a kind in a directory, with logs called NAME-PROCESS.log there."""
        config = CONFIG | dict(kind.config)
        hosts: list[pathlib.Path] = []
        if kind.pictures:
            config |= PICTURES | {
                "data.train": "folder:images/train",
                "data.eval": "folder:images/eval",
            }
            hosts = [directory / f"host-{index}" for index in range(kind.num_processes)]
            for host in hosts:
                if not host.exists():
                    write_pictures(host / "sound")
                    write_pictures(host / "broken", truncated=True)
                    (host / "images").symlink_to("sound")
        logs = [directory / f"{name}-{index}.log" for index in range(kind.num_processes)]
        return Start(directory / "workdir", logs, config, dict(caches), hosts)

    def _train_uninterrupted(self, kind: Kind, directory: pathlib.Path) -> UninterruptedRun:
        caches = caches_in(directory)
        times = [time.monotonic()]
        with contextlib.closing(self.start(kind, directory, "uninterrupted", caches)) as start:
            for condition in (
                lambda now: now.has_started,
                lambda now: bool(now.trained),
                lambda now: 2 * EVAL_EVERY in now.trained,  # the first evaluation compiles
                lambda now: 2 * EVAL_EVERY in now.evaluated,
                lambda now: LAST_STEP in now.evaluated,
            ):
                start.wait_until(condition)
                times.append(time.monotonic())
            codes = start.wait()
            if any(codes):
                log = start.observe().log[-2000:]
                raise StuckError(f"uninterrupted, it ends with {codes}: {log}")
        pace = Pace(
            start_up=times[1] - times[0],
            compilation=times[2] - times[1],
            evaluation=times[4] - times[3],
            end=time.monotonic() - times[5],
        )
        return UninterruptedRun(start.workdir, pace, caches)


def caches_in(directory: pathlib.Path) -> dict[str, str]:
    """Return environment variables that put all caches of a run in a directory."""
    return {
        "TFDS_DATA_DIR": str(directory / "tfds"),
        "XDG_CACHE_HOME": str(directory / "cache"),
        "JAX_COMPILATION_CACHE_DIR": str(directory / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_PLATFORMS": "cpu",
    }


def write_pictures(directory: pathlib.Path, truncated: bool = False) -> None:
    """Write small photographs of two classes, 48 of each for training and 20 for evaluation.

    Args:
        directory: where to write them.
        truncated: whether to write only the first half of each file.
    """
    rng = np.random.default_rng(0)
    for part, count in (("train", 48), ("eval", 20)):
        for number, class_name in enumerate(("dark", "light")):
            (directory / part / class_name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 160, (14, 18, 3)) + 90 * number
                content = cv2.imencode(".jpg", pixels.astype(np.uint8))[1].tobytes()
                content = content[: len(content) // 2] if truncated else content
                (directory / part / class_name / f"{index}.jpg").write_bytes(content)


class Trial:
    """One interrupted run."""

    def __init__(self, campaign: Campaign, name: str, number: int) -> None:
        """Create run `number` of the kind `name`."""
        self.kind, self.campaign = KINDS[name], campaign
        self.rng = random.Random(f"{campaign.seed} {name} {number}")
        self.directory = campaign.directory / f"{name}-{number}"
        self.findings: list[str] = []
        self.interruptions: list[tuple[str, str]] = []

    def run(self) -> Outcome:
        """Interrupt the run two or three times, let it finish, and compare."""
        expected = self.campaign.uninterrupted_run(self.kind)
        self.directory.mkdir()
        caches = dict(expected.caches)
        try:
            saved: tuple[int, ...] = ()
            for number, target in enumerate([*self._choose_phases(), None]):
                # A run to be interrupted in these phases starts with empty caches, or it would be
                # too fast. The next starts find its caches, which may be half written.
                new_caches = caches_in(self.directory)
                if target == COMPILATION:
                    caches["JAX_COMPILATION_CACHE_DIR"] = new_caches["JAX_COMPILATION_CACHE_DIR"]
                elif target == START_UP:
                    for name in ("TFDS_DATA_DIR", "XDG_CACHE_HOME"):
                        caches[name] = new_caches[name]
                start = self.campaign.start(self.kind, self.directory, f"start-{number}", caches)
                with contextlib.closing(start):
                    self._interrupt_or_finish(start, target, expected.pace)
                    self._check_resumption(start, saved)
                    saved = start.observe().saved
            self.findings += differences(expected.workdir, self.directory / "workdir", LAST_STEP)
        except StuckError as error:
            self.findings.append(str(error))
        return Outcome(tuple(self.interruptions), tuple(self.findings), self.directory)

    def _choose_phases(self) -> list[str]:
        """Return the phases in which to interrupt the run, in order."""
        num_phases = min(self.rng.choice((2, 3)), len(self.kind.phases))
        return sorted(self.rng.sample(self.kind.phases, num_phases), key=lambda p: p == END)

    def _interrupt_or_finish(self, start: Start, target: str | None, pace: Pace) -> None:
        """Interrupt the run at a random moment of the target phase; without one, let it finish."""
        if target is not None:
            name = self.rng.choice(sorted(self.kind.interruptions))
            condition, delay = self._choose_moment(target, pace)
            if start.wait_until(condition):
                time.sleep(delay)
                if not start.has_ended():
                    self.kind.interruptions[name](self, start)
                    self._check_log(start)
                    return
        codes = start.wait()
        if any(codes):
            self._report(start, f"not interrupted, it ends with {codes}")
        self._check_log(start)

    def _choose_moment(
        self, target: str, pace: Pace
    ) -> tuple[Callable[[Observation], bool], float]:
        """Return a condition to wait for, and how many seconds to wait after it."""
        rng, is_first = self.rng, not self.interruptions
        if target == START_UP:
            return lambda now: True, rng.uniform(0, pace.start_up)
        if target == COMPILATION:
            return lambda now: now.has_started, rng.uniform(0, pace.compilation)
        if target == STEPS:
            num_lines = rng.randint(1, 8 if is_first else 3)
            return lambda now: len(now.trained) >= num_lines, rng.uniform(0, 0.1)
        if target == EVALUATION:
            num_evaluations = rng.randint(1, 3 if is_first else 1)

            def evaluation_started(now: Observation) -> bool:
                steps = [step for step in now.trained if step % EVAL_EVERY == 0]
                return len(steps) >= num_evaluations

            return evaluation_started, rng.uniform(0, pace.evaluation)
        if target == SAVING:
            num_drafts, drafts = rng.randint(1, 4 if is_first else 1), set()

            def saving_started(now: Observation) -> bool:
                if now.trained:
                    drafts.update(now.drafts)
                return len(drafts) >= num_drafts

            return saving_started, rng.uniform(0, 0.1)
        return lambda now: LAST_STEP in now.evaluated, rng.uniform(0, pace.end)

    def _check_resumption(self, start: Start, saved: tuple[int, ...]) -> None:
        """Check that the run resumed from the newest complete checkpoint."""
        now = start.observe()
        if not now.has_started:
            return
        match = re.search(r"resuming after step (\d+) from", now.log)
        step = int(match[1]) if match else 0
        if step != max(saved, default=0):
            self._report(start, f"it resumes after step {step}, with {saved} saved")

    def _check_log(self, start: Start) -> None:
        if self.kind.num_processes > 1:
            return  # JAX logs errors in the remaining processes
        killed = start.processes[0].returncode == -signal.SIGKILL
        for text in (_NEVER_LOGGED,) if killed else (_NEVER_LOGGED, _LOGGED_ONLY_IF_KILLED):
            if text in start.observe().log:
                self._report(start, f"its log contains: {text}")

    def _report(self, start: Start, finding: str) -> None:
        self.findings.append(f"{start.logs[0].name}: {finding}")

    # The interruptions.

    def kill(self, start: Start) -> None:
        """Send SIGKILL to one of the processes; the others must end by themselves."""
        victim = self.rng.choice(start.processes)
        segments = shared_memory(victim.pid)
        victim.kill()
        victim.wait()
        self.interruptions.append(("SIGKILL", start.observe().phase))
        self.findings += left_behind(victim.pid, segments)
        for process, code in zip(start.processes, start.wait(_PEER_TIMEOUT), strict=True):
            finished = f"finished {LAST_STEP} steps" in start.observe().log
            if process is not victim and code == 0 and not finished:
                self._report(start, "another process ends as if nothing had happened")

    def terminate(self, start: Start) -> None:
        """Send SIGTERM to the process."""
        self._send_sigterm(start, lambda process: process.terminate(), "SIGTERM")

    def terminate_group(self, start: Start) -> None:
        """Send SIGTERM to its process group, as `timeout`, systemd and scancel do."""
        self._send_sigterm(
            start, lambda process: os.killpg(process.pid, signal.SIGTERM), "SIGTERM to the group"
        )

    def _send_sigterm(self, start: Start, send: Callable[..., None], name: str) -> None:
        (process,), before = start.processes, start.observe()
        segments = shared_memory(process.pid)
        if process.poll() is not None:
            return
        send(process)
        self.interruptions.append((name, before.phase))
        (code,), after = start.wait(), start.observe()
        stopped = re.search(r"stopped by SIGTERM after step (\d+) of", after.log)
        if code == 128 + signal.SIGTERM:
            if not stopped or int(stopped[1]) != max(after.saved, default=0):
                self._report(start, f"143, and of {after.saved} the last is not where it stopped")
        elif code == 0:
            # A step is logged one step late, and the run may take some more until it stops.
            if before.phase != END and max(before.trained, default=0) < LAST_STEP - 5:
                self._report(start, f"SIGTERM after step {before.trained[-1:]}, but it ends with 0")
        elif code != -signal.SIGTERM or (before.has_started and "finished" not in after.log):
            # Before the handler is installed and after the end, the signal ends it as any program.
            self._report(start, f"SIGTERM in {before.phase}, and it ends with {code}")
        self.findings += left_behind(process.pid, segments)

    def unwritable_metrics(self, start: Start) -> None:
        """Make the first process unable to write its metrics."""
        path, backup = self.directory / "workdir" / "metrics.jsonl", self.directory / "metrics"
        backup.write_text("")
        while not path.is_dir():  # the run may write a line after the rename
            if path.exists():
                with backup.open("a") as file:
                    path.rename(self.directory / "part")
                    file.write((self.directory / "part").read_text())
            with contextlib.suppress(FileExistsError):
                path.mkdir()
        self._wait_for_failure(start, "metrics that cannot be written", failing=0)
        path.rmdir()
        backup.rename(path)

    def broken_pictures(self, start: Start) -> None:
        """Make the second process, on a separate host, unable to read its pictures."""
        link = self.directory / "host-1" / "images"
        self._replace_link(link, "broken")
        self._wait_for_failure(start, "pictures that cannot be read", failing=1)
        self._replace_link(link, "sound")

    def _wait_for_failure(self, start: Start, name: str, failing: int) -> None:
        self.interruptions.append((name, start.observe().phase))
        codes = start.wait(_PEER_TIMEOUT)
        if not any(codes) and f"finished {LAST_STEP} steps" in start.observe().log:
            return  # it had nothing more to write, or to read
        for index, (code, log) in enumerate(zip(codes, start.logs, strict=True)):
            if code not in (1, 2):
                self._report(start, f"{name}: process {index} ends with {code}")
            messages = re.findall(r"^train: .+", log.read_text(errors="replace"), re.MULTILINE)
            if index != failing and not messages:
                self._report(start, f"{name}: process {index} does not say why it ends")

    def _replace_link(self, link: pathlib.Path, target: str) -> None:
        draft = link.with_name("draft")
        draft.symlink_to(target)
        draft.replace(link)


_EVERY_LINE = {"log_every": "1 steps"}  # a stopped run also reports the steps since the last line
KINDS = {
    "digits": Kind("digits, SIGKILL", 26, {"SIGKILL": Trial.kill}),
    "jpeg": Kind("a folder of JPEGs, SIGKILL", 26, {"SIGKILL": Trial.kill}, pictures=True),
    "term": Kind("SIGTERM to the process", 6, {"process": Trial.terminate}, _EVERY_LINE),
    "group": Kind("SIGTERM to its group", 6, {"group": Trial.terminate_group}, _EVERY_LINE),
    "mixed": Kind(
        "SIGKILL and SIGTERM",
        6,
        {"kill": Trial.kill, "process": Trial.terminate, "group": Trial.terminate_group},
        _EVERY_LINE,
    ),
    "two": Kind("two processes, SIGKILL to one", 5, {"SIGKILL": Trial.kill}, num_processes=2),
    "raises": Kind(
        "two processes, of which one fails",
        4,
        {"metrics": Trial.unwritable_metrics, "pictures": Trial.broken_pictures},
        # The attention metrics silently skip unreadable images, and would differ.
        {"attention_images": 0},
        num_processes=2,
        pictures=True,
        phases=(COMPILATION, STEPS, EVALUATION, SAVING),
    ),
}
