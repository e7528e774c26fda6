"""Ending a run between two steps when the machine or its user asks for it."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """Whether, and by which signal, the run was asked to stop."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def reached(self, step: int) -> bool:
        """Whether to stop after `step` steps; to be asked after each, by every process.

        Of several processes any one may have been asked: JAX's coordination service tells the
        others, and all agree on a step that none has passed.
        """
        alone = jax.process_count() == 1
        if not alone and multihost_utils.reached_preemption_sync_point(step):
            self.signal = signal.SIGTERM
        return self.signal is not None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Notes SIGTERM and Ctrl-C instead of dying of them; a second one is not held back.

    Of several processes SIGTERM is noted by JAX's coordination service, which began to listen when
    they joined; Ctrl-C becomes a SIGTERM there.
    """
    request, previous = StopRequest(), {}
    alone = jax.process_count() == 1

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        signal.signal(number, previous[number])
        if alone:
            request.signal = signal.Signals(number)
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT) if alone else (signal.SIGINT,):
        previous[number] = signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
