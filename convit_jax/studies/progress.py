"""Progress of a study, and estimates of its remaining time."""

import logging
import time
from collections.abc import Iterable, Sequence

from convit_jax.console.screen import Screen, duration_in_words
from convit_jax.studies.cells import Job
from convit_jax.studies.results import Result

# Interval of progress lines in a log, when standard error is not a terminal.
SECONDS_BETWEEN_LINES = 60.0

log = logging.getLogger(__name__)


class Pace:
    """Duration of a training step by model, from finished cells or from a given rate."""

    def __init__(self, results: Iterable[Result], images_per_second: float | None = None) -> None:
        """Start from finished cells; `images_per_second` overrides them for every model."""
        self._images_per_second = images_per_second
        self._steps: dict[str, int] = {}
        self._seconds: dict[str, float] = {}
        for result in results:
            self.add(result.model, result.timed_steps, result.seconds)

    def add(self, model: str, steps: int, seconds: float) -> None:
        """Add a finished cell."""
        if not steps:
            return  # trained before; only its result was written now
        self._steps[model] = self._steps.get(model, 0) + steps
        self._seconds[model] = self._seconds.get(model, 0.0) + seconds

    def seconds_per_step(self, job: Job) -> float | None:
        """Return the mean over the model's cells, or if none is finished over all; or None."""
        if self._images_per_second:
            return job.config.batch_size / self._images_per_second
        if self._steps.get(job.cell.model):
            return self._seconds[job.cell.model] / self._steps[job.cell.model]
        steps = sum(self._steps.values())
        return sum(self._seconds.values()) / steps if steps else None

    def seconds_for(self, jobs: Iterable[Job], completed: int = 0) -> float | None:
        """Return the time of several cells, with `completed` steps of the first, or None."""
        total = 0.0
        for job in jobs:
            seconds = self.seconds_per_step(job)
            if seconds is None:
                return None
            total += (job.steps - completed) * seconds
            completed = 0
        return total


def duration_or_unknown(seconds: float | None) -> str:
    """Return a duration as text, or "unknown"."""
    return "unknown" if seconds is None else duration_in_words(seconds)


class StudyScreen(Screen):
    """A screen that shows the progress of the whole study at every step of a cell."""

    def __init__(self, pace: Pace) -> None:
        """Show only the study's log lines; those of the cells go into their log files."""
        super().__init__(only="convit_jax.studies")
        self._pace = pace

    def begin_cell(self, index: int, jobs: Sequence[Job]) -> None:
        """Start showing cell `index` of `jobs`."""
        self._label = f"cell {index + 1} of {len(jobs)}, {jobs[index].cell.name}"
        self._jobs = jobs[index:]
        # Time and number of completed steps at the first report.
        self._first_report: tuple[float, int] | None = None
        self._last_line = time.monotonic()

    def show(self, description: str, completed: int, total: int, note: str = "") -> None:
        """Show a cell's progress, with the remaining time of the study instead of the cell's."""
        del note
        now = time.monotonic()
        if self._first_report is None:  # after the first step, which compiled
            self._first_report = (now, completed)
        left = f"all {duration_or_unknown(self._seconds_left(now, completed))} left"
        super().show(f"{self._label}: {description}", completed, total, left)
        if not self.is_watched and now - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = now
            log.info("%s: %s, step %d of %d; %s", self._label, description, completed, total, left)

    def _seconds_left(self, now: float, completed: int) -> float | None:
        estimate = self._pace.seconds_for(self._jobs, completed)
        if estimate is not None or self._first_report is None:
            return estimate
        start, first_step = self._first_report
        if completed == first_step:
            return None
        steps = sum(job.steps for job in self._jobs) - completed
        return steps * (now - start) / (completed - first_step)
