"""How a repeated piece of work is timed."""

import time
from collections.abc import Callable
from typing import Any

import jax


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """What a function returns, and the seconds it took."""
    began = time.perf_counter()
    return function(), time.perf_counter() - began


def fastest(function: Callable[[], Any], seconds: float) -> float:
    """Seconds of the fastest repetition: what the machine can do when nothing else disturbs it.

    Args:
        function: the work; arrays of JAX that it returns are waited for.
        seconds: how long to repeat it; at least three times, after one that does not count.
    """
    jax.block_until_ready(function())  # the first is slower than the rest
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        times.append(timed(lambda: jax.block_until_ready(function()))[1])
    return min(times)
