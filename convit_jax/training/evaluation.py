"""Evaluation: every example exactly once, summed on the devices."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from convit_jax.data import Batch
from convit_jax.training.mesh import to_global
from convit_jax.training.step import Metrics


def evaluate(
    eval_step: Callable[[Any, dict[str, jax.Array]], Metrics],
    params: Any,
    batches: Iterable[Batch],
    sharding: NamedSharding,
) -> dict[str, float]:
    """Loss, accuracies and number of the examples.

    Args:
        eval_step: jitted (params, batch) → sums.
        params: the model's parameters.
        batches: this process's rows of each batch, padding marked by `mask`.
        sharding: of a batch.

    Returns:
        `loss` (cross-entropy, natural logarithm), `accuracy` and `accuracy_top5` in [0, 1], and
        the number of `examples`.
    """
    totals: Metrics | None = None
    for batch in batches:
        sums = eval_step(params, to_global(batch, sharding))
        totals = sums if totals is None else jax.tree.map(jnp.add, totals, sums)
    values = {name: float(value) for name, value in jax.device_get(totals).items()}
    examples = values.pop("examples")
    return {name: total / examples for name, total in values.items()} | {"examples": examples}
