"""Timing of functions."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax

T = TypeVar("T")


def time_call(function: Callable[[], T]) -> tuple[T, float]:
    """Return a function's result and the seconds that it took."""
    start = time.perf_counter()
    return function(), time.perf_counter() - start


def best_time(function: Callable[[], Any], seconds: float) -> float:
    """Return the seconds of the fastest repetition, the one least disturbed by other programs.

    Args:
        function: the work; JAX arrays that it returns are waited for.
        seconds: how long to repeat it; at least three times, after one warm-up call.
    """
    jax.block_until_ready(function())
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        times.append(time_call(lambda: jax.block_until_ready(function()))[1])
    return min(times)
