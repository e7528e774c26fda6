"""Throughput of a run, and the share of its time spent waiting for data."""

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """Times the steps between two metrics lines, excluding compilation and evaluation."""

    def __init__(self, batch_size: int, total_steps: int) -> None:
        """Start the clock of a run of `total_steps` steps of `batch_size` images."""
        self._batch_size = batch_size
        self._total_steps = total_steps
        self._seconds_per_step = 0.0
        self._created = time.monotonic()
        self.restart(0)

    def restart(self, step: int) -> None:
        """Begin a lap after `step` steps."""
        self._step, self._start_time = step, time.monotonic()
        self._paused_seconds = self._waited_seconds = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block as waiting for data."""
        start_time = time.monotonic()
        yield
        self._waited_seconds += time.monotonic() - start_time

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of the block."""
        start_time = time.monotonic()
        yield
        self._paused_seconds += time.monotonic() - start_time

    def lap(self, step: int) -> dict[str, float]:
        """End a lap after `step` steps and return its scalars.

        Returns:
            `data_wait`, the share of the time spent waiting for data, and if the lap has steps,
            `images_per_second` and `seconds_left` to the end of the run.
        """
        seconds = max(time.monotonic() - self._start_time - self._paused_seconds, 1e-9)
        num_steps = step - self._step
        scalars = {"data_wait": min(self._waited_seconds / seconds, 1.0)}
        if num_steps > 0:
            self._seconds_per_step = seconds / num_steps
            scalars["images_per_second"] = self._batch_size * num_steps / seconds
            scalars["seconds_left"] = self.seconds_left(step)
        self.restart(step)
        return scalars

    def hours(self) -> float:
        """Return the hours since the clock was started, with compilation and evaluations."""
        return (time.monotonic() - self._created) / 3600

    def seconds_left(self, step: int) -> float:
        """Return the seconds from `step` to the end of the run, at the pace of the last lap."""
        return (self._total_steps - step) * self._seconds_per_step
