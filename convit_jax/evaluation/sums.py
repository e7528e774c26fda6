"""Evaluation of every example exactly once, with sums kept on the devices."""

import collections
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from convit_jax.evaluation.step import Metrics

# Batches that may be in flight at once: the host reads ahead of the devices, but not far.
BATCHES_IN_FLIGHT = 2


def sum_over_examples(
    eval_step: Callable[[Any, dict[str, jax.Array]], Metrics],
    params: Any,
    batches: Iterable[dict[str, jax.Array]],
    progress: Callable[[int], None] = lambda num_batches: None,
) -> dict[str, np.ndarray]:
    """Add up the evaluation step's sums over all batches.

    Args:
        eval_step: jitted (params, batch) → sums.
        params: the model's parameters.
        batches: batches on the devices of all processes; `mask` is 0 for padding.
        progress: called after each batch with the number of batches done.
    """
    totals: Metrics | None = None
    in_flight: collections.deque[Metrics] = collections.deque()
    for num_batches, batch in enumerate(batches, 1):
        sums = eval_step(params, batch)
        totals = sums if totals is None else jax.tree.map(jnp.add, totals, sums)
        in_flight.append(sums)
        if len(in_flight) > BATCHES_IN_FLIGHT:
            jax.block_until_ready(in_flight.popleft())
        progress(num_batches)
    return jax.device_get(totals)


def means(totals: dict[str, np.ndarray]) -> dict[str, float]:
    """Convert the sums of an evaluation to means over its examples.

    Returns:
        `loss` (cross-entropy, natural logarithm), `accuracy` and `accuracy_top5` in [0, 1], and
        the number of `examples`; with a teacher also the `agreement` with it.
    """
    num_examples = float(totals["examples"])
    names = filter(totals.__contains__, ("loss", "accuracy", "accuracy_top5", "agreement"))
    return {name: float(totals[name]) / num_examples for name in names} | {"examples": num_examples}
