"""Evaluation: every example exactly once, summed on the devices."""

import collections
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from convit_jax.evaluation.step import Metrics

# Batches that may be on their way at once: the host reads ahead of the devices, but not far.
BATCHES_IN_FLIGHT = 2


def sum_over_examples(
    eval_step: Callable[[Any, dict[str, jax.Array]], Metrics],
    params: Any,
    batches: Iterable[dict[str, jax.Array]],
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, np.ndarray]:
    """What the evaluation step sums, over all batches.

    Args:
        eval_step: jitted (params, batch) → sums.
        params: the model's parameters.
        batches: on the devices of all processes, padding marked by `mask`.
        progress: told after each batch how many are done.
    """
    totals: Metrics | None = None
    in_flight: collections.deque[Metrics] = collections.deque()
    for done, batch in enumerate(batches, 1):
        sums = eval_step(params, batch)
        totals = sums if totals is None else jax.tree.map(jnp.add, totals, sums)
        in_flight.append(sums)
        if len(in_flight) > BATCHES_IN_FLIGHT:
            jax.block_until_ready(in_flight.popleft())
        progress(done)
    return jax.device_get(totals)


def means(totals: dict[str, np.ndarray]) -> dict[str, float]:
    """The sums of an evaluation as means over its examples.

    Returns:
        `loss` (cross-entropy, natural logarithm), `accuracy` and `accuracy_top5` in [0, 1], and
        the number of `examples`.
    """
    examples = float(totals["examples"])
    names = ("loss", "accuracy", "accuracy_top5")
    return {name: float(totals[name]) / examples for name in names} | {"examples": examples}
