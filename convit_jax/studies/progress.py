"""How far a study is, and how long it will take."""

import logging
import time
from collections.abc import Iterable, Sequence

from convit_jax.console.screen import Screen, duration_in_words
from convit_jax.studies.cells import Job
from convit_jax.studies.results import Result

# Between the lines of progress in a log that nobody watches.
SECONDS_BETWEEN_LINES = 60.0

log = logging.getLogger(__name__)


class Pace:
    """Seconds that a step takes, by model: from what was finished, or as it was told."""

    def __init__(self, results: Iterable[Result], images_per_second: float | None = None) -> None:
        """`images_per_second`, where it is given, goes for every cell."""
        self._told = images_per_second
        self._steps: dict[str, int] = {}
        self._seconds: dict[str, float] = {}
        for result in results:
            self.add(result.model, result.timed_steps, result.seconds)

    def add(self, model: str, steps: int, seconds: float) -> None:
        """Takes a cell into account that was finished."""
        if not steps:
            return  # only its result was missing
        self._steps[model] = self._steps.get(model, 0) + steps
        self._seconds[model] = self._seconds.get(model, 0.0) + seconds

    def seconds_a_step(self, job: Job) -> float | None:
        """Of a cell's model, or of all models where none of its own is finished; None: unknown."""
        if self._told:
            return job.config.batch_size / self._told
        if self._steps.get(job.cell.model):
            return self._seconds[job.cell.model] / self._steps[job.cell.model]
        steps = sum(self._steps.values())
        return sum(self._seconds.values()) / steps if steps else None

    def seconds_for(self, jobs: Iterable[Job], done: int = 0) -> float | None:
        """Of several cells, `done` steps of the first of which are done; None: unknown."""
        total = 0.0
        for job in jobs:
            seconds = self.seconds_a_step(job)
            if seconds is None:
                return None
            total += (job.steps - done) * seconds
            done = 0
        return total


def in_words(seconds: float | None) -> str:
    """A time, or that it is unknown."""
    return "unknown" if seconds is None else duration_in_words(seconds)


class Overview(Screen):
    """A screen that says of every step of a cell how far the whole study is."""

    def __init__(self, pace: Pace) -> None:
        """The lines that it shows are the study's; those of the cells go into their logs."""
        super().__init__(only="convit_jax.studies")
        self._pace = pace
        self._label = ""

    def begin(self, number: int, jobs: Sequence[Job]) -> None:
        """The next cell is `number`, from 0, of `jobs`."""
        self._label = f"cell {number + 1} of {len(jobs)}, {jobs[number].cell.name}"
        self._jobs = jobs[number:]
        self._began: tuple[float, int] | None = None
        self._told = time.monotonic()

    def show(self, description: str, completed: int, total: int, note: str = "") -> None:
        """What the training loop says of a cell, with the time left of all rather than its own."""
        del note
        now = time.monotonic()
        if self._began is None:  # the first step is done, and it compiled
            self._began = (now, completed)
        left = f"all {in_words(self._seconds_left(now, completed))} left"
        super().show(f"{self._label}: {description}", completed, total, left)
        if not self.is_watched and now - self._told > SECONDS_BETWEEN_LINES:
            self._told = now
            log.info("%s: %s, step %d of %d; %s", self._label, description, completed, total, left)

    def _seconds_left(self, now: float, completed: int) -> float | None:
        before = self._pace.seconds_for(self._jobs, completed)
        if before is not None or self._began is None:
            return before
        began, first = self._began
        if completed == first:
            return None
        steps = sum(job.steps for job in self._jobs) - completed
        return steps * (now - began) / (completed - first)
