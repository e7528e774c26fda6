"""Ending a run between two steps on SIGTERM or Ctrl-C."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """The signal that asked the run to stop, if any.

    Attributes:
        signal: the signal received, or None.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def reached(self, step: int) -> bool:
        """Return whether to stop after `step` steps; every process calls this after each step.

        With several processes, the signal may reach any of them. JAX's coordination service tells
        the others, and all agree on a step that none has passed.
        """
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.signal = signal.SIGTERM
        return self.signal is not None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Record the first SIGTERM or Ctrl-C instead of ending; a second one has its usual effect.

    With several processes, JAX's coordination service handles SIGTERM from the moment they join,
    and Ctrl-C is turned into a SIGTERM.
    """
    request = StopRequest()
    previous: dict[int, Any] = {}
    single_process = jax.process_count() == 1

    def record(number: int, frame: FrameType | None) -> None:
        del frame
        signal.signal(number, previous[number])
        if single_process:
            request.signal = signal.Signals(number)
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT) if single_process else (signal.SIGINT,):
        previous[number] = signal.signal(number, record)
    try:
        yield request
    finally:
        for handled_signal, handler in previous.items():
            signal.signal(handled_signal, handler)
