"""How fast a run goes, and how much of its time it waits for data."""

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """Times the steps between two lines of metrics; compiling and evaluating do not count."""

    def __init__(self, batch_size: int, total_steps: int) -> None:
        """`batch_size` images a step, `total_steps` in the run."""
        self._batch_size = batch_size
        self._total_steps = total_steps
        self._seconds_a_step = 0.0
        self.restart(0)

    def restart(self, step: int) -> None:
        """Begins a lap after `step` steps."""
        self._step, self._began, self._paused, self._waited = step, time.monotonic(), 0.0, 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts what happens inside as waiting for data."""
        began = time.monotonic()
        yield
        self._waited += time.monotonic() - began

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out what happens inside."""
        began = time.monotonic()
        yield
        self._paused += time.monotonic() - began

    def lap(self, step: int) -> dict[str, float]:
        """Ends a lap after `step` steps: images a second, and the share of time without data."""
        seconds = max(time.monotonic() - self._began - self._paused, 1e-9)
        steps = step - self._step
        scalars = {"data_wait": min(self._waited / seconds, 1.0)}
        if steps > 0:
            self._seconds_a_step = seconds / steps
            scalars["images_per_second"] = self._batch_size * steps / seconds
            scalars["seconds_left"] = self.seconds_left(step)
        self.restart(step)
        return scalars

    def seconds_left(self, step: int) -> float:
        """Seconds from `step` to the end of the run, at the pace of the last lap."""
        return (self._total_steps - step) * self._seconds_a_step
