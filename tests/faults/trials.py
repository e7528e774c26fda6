"""Runs that are interrupted at random moments and started again until they are done.

Each is compared with a run of its kind that was left alone. Which moments are chosen is a function
of (seed, kind, number); the machine's pace decides what a run does just then.
"""

import contextlib
import dataclasses
import os
import pathlib
import random
import re
import shutil
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
    EVAL_EVERY,
    EVALUATION,
    LAST_STEP,
    PHASES,
    PICTURES,
    SAVING,
    START_UP,
    STEPS,
    THE_END,
    Seen,
    Start,
    StuckError,
    left_behind,
    shared_memory,
)

_TO_END = 60.0  # seconds that the other processes of a run have when one is gone
# A worker may find that its parent was killed before it was told what to do.
_NEVER_SAID, _NOT_UNLESS_KILLED = "damaged", "Traceback (most recent call last)"


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of run, and what happens to it.

    Attributes:
        about: in words.
        runs: how many a whole campaign has.
        interruptions: what may happen to it, by name: (trial, start) → when it has happened.
        config: configuration keys beside CONFIG.
        processes: that train together.
        pictures: whether on photographs instead of digits.
        phases: when it happens.
    """

    about: str
    runs: int
    interruptions: Mapping[str, Callable[["Trial", Start], None]]
    config: Mapping[str, object] = dataclasses.field(default_factory=dict)
    processes: int = 1
    pictures: bool = False
    phases: tuple[str, ...] = PHASES


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Attributes:
        interrupted: (what happened to it, in which phase), in turn.
        complaints: what is wrong; empty where it came to the same as the run left alone.
        directory: where its workdir and its logs are.
    """

    interrupted: tuple[tuple[str, str], ...]
    complaints: tuple[str, ...]
    directory: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Pace:
    """How long the phases of a run that compiles everything take, in seconds."""

    start_up: float
    compilation: float
    evaluation: float
    the_end: float


@dataclasses.dataclass(frozen=True)
class LeftAlone:
    """A run that nothing happened to.

    Attributes:
        workdir: its.
        pace: its.
        caches: what it found out and compiled: variables of the environment that say where.
    """

    workdir: pathlib.Path
    pace: Pace
    caches: Mapping[str, str]


class Campaign:
    """Makes runs of all kinds in a directory."""

    def __init__(self, directory: pathlib.Path, seed: int) -> None:
        """Takes where to work; the seed decides the moments."""
        self.directory, self.seed = directory, seed
        self._alone: dict[tuple[str, ...], LeftAlone] = {}
        self._making = threading.Lock()

    def run(self, name: str, number: int) -> Outcome:
        """Has a run interrupted and compares its end."""
        return Trial(self, name, number).run()

    def left_alone(self, kind: Kind) -> LeftAlone:
        """A run of a kind that is left alone, made when it is first asked for.

        Raises:
            StuckError: it does not end well.
        """
        key = (str(kind.config), str(kind.processes), str(kind.pictures))
        with self._making:
            if key not in self._alone:
                directory = self.directory / f"alone-{len(self._alone)}"
                directory.mkdir()
                self._alone[key] = self._leave_alone(kind, directory)
            return self._alone[key]

    def start(
        self, kind: Kind, directory: pathlib.Path, name: str, caches: Mapping[str, str]
    ) -> Start:
        """Starts a run of a kind in a directory; what it says goes to files of some name there."""
        config = CONFIG | dict(kind.config)
        places = []
        if kind.pictures:
            config |= PICTURES | {
                "data.train": "folder:images/train",
                "data.eval": "folder:images/eval",
            }
            places = [directory / f"host-{index}" for index in range(kind.processes)]
            for place in places:
                if not place.exists():
                    write_pictures(place / "sound")
                    write_pictures(place / "broken", cut_off=True)
                    (place / "images").symlink_to("sound")
        logs = [directory / f"{name}-{index}.log" for index in range(kind.processes)]
        return Start(directory / "workdir", logs, config, dict(caches), places)

    def _leave_alone(self, kind: Kind, directory: pathlib.Path) -> LeftAlone:
        caches = caches_in(directory)
        began = time.monotonic()
        with contextlib.closing(self.start(kind, directory, "alone", caches)) as start:
            at = []
            for until in (
                lambda seen: seen.begins,
                lambda seen: bool(seen.trained),
                lambda seen: 2 * EVAL_EVERY in seen.trained,  # the first evaluation compiles
                lambda seen: 2 * EVAL_EVERY in seen.evaluated,
                lambda seen: LAST_STEP in seen.evaluated,
            ):
                start.watch(until)
                at.append(time.monotonic())
            codes = start.codes()
            if any(codes):
                raise StuckError(f"left alone, it ends with {codes}: {start.seen().log[-2000:]}")
        pace = Pace(at[0] - began, at[1] - at[0], at[3] - at[2], time.monotonic() - at[4])
        return LeftAlone(start.workdir, pace, caches)


def caches_in(directory: pathlib.Path) -> dict[str, str]:
    """Variables that have a run keep what it finds out, prepares and compiles in a directory."""
    return {
        "TFDS_DATA_DIR": str(directory / "tfds"),
        "XDG_CACHE_HOME": str(directory / "cache"),
        "JAX_COMPILATION_CACHE_DIR": str(directory / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_PLATFORMS": "cpu",
    }


def write_pictures(directory: pathlib.Path, cut_off: bool = False) -> None:
    """Small photographs of two classes, 48 to train on and 20 to evaluate on of each.

    Args:
        directory: where to.
        cut_off: whether each file ends in its middle.
    """
    rng = np.random.default_rng(0)
    for part, count in (("train", 48), ("eval", 20)):
        for number, class_name in enumerate(("dark", "light")):
            (directory / part / class_name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 160, (14, 18, 3)) + 90 * number
                content = cv2.imencode(".jpg", pixels.astype(np.uint8))[1].tobytes()
                content = content[: len(content) // 2] if cut_off else content
                (directory / part / class_name / f"{index}.jpg").write_bytes(content)


class Trial:
    """One run, interrupted."""

    def __init__(self, campaign: Campaign, name: str, number: int) -> None:
        """The run of a number of the kind of a name."""
        self.kind, self.campaign = KINDS[name], campaign
        self.rng = random.Random(f"{campaign.seed} {name} {number}")
        self.directory = campaign.directory / f"{name}-{number}"
        self.complaints: list[str] = []
        self.interrupted: list[tuple[str, str]] = []

    def run(self) -> Outcome:
        """Interrupts it two or three times, lets it finish, and compares."""
        alone = self.campaign.left_alone(self.kind)
        self.directory.mkdir()
        caches = dict(alone.caches)
        try:
            saved: tuple[int, ...] = ()
            for number, target in enumerate([*self._plan(), None]):
                # Who is to be interrupted in these phases has no cache to be quicker by; what it
                # leaves in its own, half written perhaps, the next starts find.
                own = caches_in(self.directory)
                if target == COMPILATION:
                    caches["JAX_COMPILATION_CACHE_DIR"] = own["JAX_COMPILATION_CACHE_DIR"]
                elif target == START_UP:
                    caches |= {name: own[name] for name in ("TFDS_DATA_DIR", "XDG_CACHE_HOME")}
                start = self.campaign.start(self.kind, self.directory, f"start-{number}", caches)
                with contextlib.closing(start):
                    self._go(start, target, alone.pace)
                    self._check_beginning(start, saved)
                    saved = start.seen().saved
            self.complaints += differences(alone.workdir, self.directory / "workdir", LAST_STEP)
        except StuckError as error:
            self.complaints.append(str(error))
        return Outcome(tuple(self.interrupted), tuple(self.complaints), self.directory)

    def _plan(self) -> list[str]:
        """The phases to interrupt it in, in turn."""
        count = min(self.rng.choice((2, 3)), len(self.kind.phases))
        return sorted(self.rng.sample(self.kind.phases, count), key=lambda p: p == THE_END)

    def _go(self, start: Start, target: str | None, pace: Pace) -> None:
        """Waits for a moment in a phase and interrupts it then; lets it finish if there is none."""
        if target is not None:
            name = self.rng.choice(sorted(self.kind.interruptions))
            until, delay = self._moment(target, pace)
            if start.watch(until):
                time.sleep(delay)
                if not start.ended():
                    self.kind.interruptions[name](self, start)
                    self._check_said(start)
                    return
        codes = start.codes()
        if any(codes):
            self._complain(start, f"let finish, it ends with {codes}")
        self._check_said(start)

    def _moment(self, target: str, pace: Pace) -> tuple[Callable[[Seen], bool], float]:
        """What to wait for, and how many seconds more."""
        rng, first = self.rng, not self.interrupted
        if target == START_UP:
            return lambda seen: True, rng.uniform(0, pace.start_up)
        if target == COMPILATION:
            return lambda seen: seen.begins, rng.uniform(0, pace.compilation)
        if target == STEPS:
            lines = rng.randint(1, 8 if first else 3)
            return lambda seen: len(seen.trained) >= lines, rng.uniform(0, 0.1)
        if target == EVALUATION:
            which = rng.randint(1, 3 if first else 1)

            def evaluates(seen: Seen) -> bool:
                begun = [step for step in seen.trained if step % EVAL_EVERY == 0]
                return len(begun) >= which

            return evaluates, rng.uniform(0, pace.evaluation)
        if target == SAVING:
            which, drafts = rng.randint(1, 4 if first else 1), set()

            def saves(seen: Seen) -> bool:
                if seen.trained:
                    drafts.update(seen.drafts)
                return len(drafts) >= which

            return saves, rng.uniform(0, 0.1)
        return lambda seen: LAST_STEP in seen.evaluated, rng.uniform(0, pace.the_end)

    def _check_beginning(self, start: Start, saved: tuple[int, ...]) -> None:
        """It must go on from the newest checkpoint that is whole."""
        seen = start.seen()
        if not seen.begins:
            return
        found = re.search(r"resuming after step (\d+) from", seen.log)
        went_on = int(found[1]) if found else 0
        if went_on != max(saved, default=0):
            self._complain(start, f"it goes on after step {went_on}, with {saved} saved")

    def _check_said(self, start: Start) -> None:
        if self.kind.processes > 1:
            return  # JAX has its say in those that are left
        killed = start.processes[0].returncode == -signal.SIGKILL
        for words in (_NEVER_SAID,) if killed else (_NEVER_SAID, _NOT_UNLESS_KILLED):
            if words in start.seen().log:
                self._complain(start, f"it says: {words}")

    def _complain(self, start: Start, words: str) -> None:
        self.complaints.append(f"{start.logs[0].name}: {words}")

    # What may happen to a run.

    def kill(self, start: Start) -> None:
        """SIGKILL, to one of its processes; the others must end by themselves."""
        victim = self.rng.choice(start.processes)
        segments = shared_memory(victim.pid)
        victim.kill()
        victim.wait()
        self.interrupted.append(("SIGKILL", start.seen().phase))
        self.complaints += left_behind(victim.pid, segments)
        for process, code in zip(start.processes, start.codes(_TO_END), strict=True):
            finished = f"finished {LAST_STEP} steps" in start.seen().log
            if process is not victim and code == 0 and not finished:
                self._complain(start, "another process ends as if nothing had happened")

    def terminate(self, start: Start) -> None:
        """SIGTERM to the process."""
        self._asked_to_end(start, lambda process: process.terminate(), "SIGTERM")

    def terminate_group(self, start: Start) -> None:
        """SIGTERM to its group, as `timeout`, systemd and scancel send it."""
        self._asked_to_end(
            start, lambda process: os.killpg(process.pid, signal.SIGTERM), "SIGTERM to the group"
        )

    def _asked_to_end(self, start: Start, ask: Callable[..., None], name: str) -> None:
        (process,), before = start.processes, start.seen()
        segments = shared_memory(process.pid)
        if process.poll() is not None:
            return
        ask(process)
        self.interrupted.append((name, before.phase))
        (code,), after = start.codes(), start.seen()
        stopped = re.search(r"stopped by SIGTERM after step (\d+) of", after.log)
        if code == 128 + signal.SIGTERM:
            if not stopped or int(stopped[1]) != max(after.saved, default=0):
                self._complain(start, f"143, and of {after.saved} the last is not where it stopped")
        elif code == 0:
            # It tells of a step one step late, and may take some more before it hears.
            if before.phase != THE_END and max(before.trained, default=0) < LAST_STEP - 5:
                self._complain(start, f"it was asked after {before.trained[-1:]} and ends with 0")
        elif code != -signal.SIGTERM or (before.begins and "finished" not in after.log):
            # Before it listens, and when it is done, a signal ends it as it ends any program.
            self._complain(start, f"asked to end in {before.phase} it ends with {code}")
        self.complaints += left_behind(process.pid, segments)

    def unwritable_metrics(self, start: Start) -> None:
        """Metrics that the first process cannot write any more."""
        path, aside = self.directory / "workdir" / "metrics.jsonl", self.directory / "metrics"
        aside.write_text("")
        while not path.is_dir():  # it may write a line between the two
            if path.exists():
                with aside.open("a") as file:
                    path.rename(self.directory / "taken")
                    file.write((self.directory / "taken").read_text())
            with contextlib.suppress(FileExistsError):
                path.mkdir()
        self._raises(start, "metrics that cannot be written", failing=0)
        path.rmdir()
        aside.rename(path)

    def broken_pictures(self, start: Start) -> None:
        """Pictures that the second process cannot read any more, on a host of its own."""
        link = self.directory / "host-1" / "images"
        self._point(link, "broken")
        self._raises(start, "pictures that cannot be read", failing=1)
        self._point(link, "sound")

    def _raises(self, start: Start, name: str, failing: int) -> None:
        self.interrupted.append((name, start.seen().phase))
        codes = start.codes(_TO_END)
        if not any(codes) and f"finished {LAST_STEP} steps" in start.seen().log:
            return  # it had nothing more to write, or to read
        for index, (code, log) in enumerate(zip(codes, start.logs, strict=True)):
            if code not in (1, 2):
                self._complain(start, f"{name}: process {index} ends with {code}")
            said = re.findall(r"^train: .+", log.read_text(errors="replace"), re.MULTILINE)
            if index != failing and not said:
                self._complain(start, f"{name}: process {index} does not say why it ends")

    def _point(self, link: pathlib.Path, target: str) -> None:
        draft = link.with_name("draft")
        draft.symlink_to(target)
        draft.replace(link)


_EVERY_LINE = {"log_every": "1 steps"}  # a run that stops tells of the steps since the last line
KINDS = {
    "digits": Kind("digits, SIGKILL", 26, {"SIGKILL": Trial.kill}),
    "jpeg": Kind("a folder of JPEGs, SIGKILL", 26, {"SIGKILL": Trial.kill}, pictures=True),
    "term": Kind("SIGTERM to the process", 6, {"process": Trial.terminate}, _EVERY_LINE),
    "group": Kind("SIGTERM to its group", 6, {"group": Trial.terminate_group}, _EVERY_LINE),
    "mixed": Kind(
        "SIGKILL and SIGTERM in turn",
        6,
        {"kill": Trial.kill, "process": Trial.terminate, "group": Trial.terminate_group},
        _EVERY_LINE,
    ),
    "two": Kind("two processes, SIGKILL to one", 5, {"SIGKILL": Trial.kill}, processes=2),
    "raises": Kind(
        "two processes, of which one fails",
        4,
        {"metrics": Trial.unwritable_metrics, "pictures": Trial.broken_pictures},
        # Attention is measured on those of its images that can be read; nobody counts the others.
        {"attention_images": 0},
        processes=2,
        pictures=True,
        phases=(COMPILATION, STEPS, EVALUATION, SAVING),
    ),
}


def forget(outcome: Outcome) -> None:
    """Removes what a run left."""
    shutil.rmtree(outcome.directory)
