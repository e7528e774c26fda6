"""The metrics of the steps since the last line, left on the devices until that line is written."""

import math
from typing import Any

import jax

from convit_jax.training.step import Metrics


class NotFiniteError(ArithmeticError):
    """A loss or gradient is no longer a finite number.

    Attributes:
        step: the first step where it was not.
        metrics: that step's.
    """

    def __init__(self, step: int, metrics: dict[str, Any]) -> None:
        super().__init__(f"not finite at step {step}")
        self.step, self.metrics = step, metrics


class MetricsWindow:
    """Collects each step's metrics without waiting for them."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, Metrics]] = []

    def add(self, step: int, metrics: Metrics) -> None:
        """Notes the metrics of a step, which may still be being computed."""
        self._steps.append((step, metrics))

    def means(self, step: int) -> dict[str, float]:
        """Means over the noted steps up to `step`, which are then forgotten; empty if none.

        The learning rate is the last step's. Waits for the devices if they are not there yet.

        Raises:
            NotFiniteError: a loss or gradient was not finite.
        """
        done = [item for item in self._steps if item[0] <= step]
        self._steps = self._steps[len(done) :]
        values = jax.device_get([metrics for _, metrics in done])
        for (at, _), metrics in zip(done, values, strict=True):
            if not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["gradient_norm"])):
                raise NotFiniteError(at, metrics)
        if not done:
            return {}
        means = {name: sum(float(m[name]) for m in values) / len(values) for name in values[0]}
        return means | {"learning_rate": float(values[-1]["learning_rate"])}
