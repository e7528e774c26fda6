"""Ending a run whose evaluations no longer improve: a function of the accuracies so far."""

import dataclasses
import json
import math

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from convit_jax.config import EarlyStoppingConfig


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """The evaluations of a run so far, as far as ending it early depends on them.

    Attributes:
        config: when to stop.
        best, best_step: the accuracy to exceed, and the number of steps after which it was
            reached.
        since_best: number of evaluations since then.
    """

    config: EarlyStoppingConfig
    best: float = -math.inf
    best_step: int = 0
    since_best: int = 0

    def after(self, step: int, accuracy: float) -> "EarlyStopping":
        """Return what one more evaluation leads to."""
        if accuracy > self.best + self.config.min_delta:
            return EarlyStopping(self.config, accuracy, step)
        return dataclasses.replace(self, since_best=self.since_best + 1)

    @property
    def stops(self) -> bool:
        """Whether the run ends here."""
        return 0 < self.config.patience <= self.since_best

    def scalars(self) -> dict[str, float]:
        """Return what an evaluation reports of it; nothing if the run is never ended early."""
        if not self.config.patience:
            return {}
        reason = {"stopped_early": 1.0} if self.stops else {}
        return {"evaluations_since_best": float(self.since_best)} | reason

    def __str__(self) -> str:
        margin = f" by more than {self.config.min_delta:g}" if self.config.min_delta else ""
        return (
            f"{self.since_best} evaluations did not exceed the accuracy of step {self.best_step}, "
            f"{100 * self.best:.2f}%{margin} (config.early_stopping.patience)"
        )


def resume_early_stopping(config: EarlyStoppingConfig, metrics: epath.Path) -> EarlyStopping:
    """Return where the evaluations in a run's metrics.jsonl lead to, the same in all processes.

    Args:
        config: when to stop.
        metrics: the file, which `FileWriter` has cut off after the step that the run resumes from.
    """
    state = EarlyStopping(config)
    if not config.patience:
        return state
    if jax.process_index() == 0 and metrics.exists():
        for record in map(json.loads, metrics.read_text().splitlines()):
            if record.get("eval/accuracy") is not None:
                state = state.after(record["step"], record["eval/accuracy"])
    values = np.array([state.best, state.best_step, state.since_best], np.float64)
    # As bytes, because JAX would round them to float32 on their way.
    sent = multihost_utils.broadcast_one_to_all(values.view(np.uint8))
    best, best_step, since_best = np.asarray(sent, np.uint8).view(np.float64).tolist()
    return EarlyStopping(config, best, int(best_step), int(since_best))
