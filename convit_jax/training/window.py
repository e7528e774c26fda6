"""The metrics of the steps since the last metrics line, kept on the devices until the next."""

import math
from typing import Any

import jax

from convit_jax.training.step import Metrics


class NotFiniteError(ArithmeticError):
    """A loss or gradient norm is not finite.

    Attributes:
        step: the first step with such a value.
        metrics: the metrics of that step.
    """

    def __init__(self, step: int, metrics: dict[str, Any]) -> None:
        super().__init__(f"not finite at step {step}")
        self.step, self.metrics = step, metrics


class MetricsWindow:
    """Collects each step's metrics without waiting for them."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, Metrics]] = []

    def add(self, step: int, metrics: Metrics) -> None:
        """Add the metrics of a step, which may still be being computed."""
        self._steps.append((step, metrics))

    def means(self, step: int) -> dict[str, float]:
        """Remove the steps up to `step` and return the means of their metrics; empty if none.

        The learning rate is the last step's. Waits for the devices to compute the metrics.

        Raises:
            NotFiniteError: a loss or gradient norm is not finite.
        """
        due = [item for item in self._steps if item[0] <= step]
        self._steps = self._steps[len(due) :]
        values = jax.device_get([metrics for _, metrics in due])
        for (number, _), metrics in zip(due, values, strict=True):
            if not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["gradient_norm"])):
                raise NotFiniteError(number, metrics)
        if not due:
            return {}
        means = {name: sum(float(m[name]) for m in values) / len(values) for name in values[0]}
        return means | {"learning_rate": float(values[-1]["learning_rate"])}
