"""The data road: named examples → host transforms → the global batch of a step.

The names are imported on first use, so that a worker process imports only what reading needs.
"""

import importlib
from typing import Any

_HOMES = {
    "Batch": "loader",
    "EpochOrder": "order",
    "EvalTransform": "transforms",
    "Health": "health",
    "Reading": "loader",
    "Source": "source",
    "TrainTransform": "transforms",
    "eval_batches": "loader",
    "num_eval_batches": "loader",
    "open_source": "sources",
    "align_classes": "class_maps",
    "describe_classes": "subsets",
    "evenly": "subsets",
    "hold_out": "subsets",
    "occurring_classes": "subsets",
    "only_classes": "subsets",
    "spread_out": "subsets",
    "subset": "subsets",
    "train_batches": "loader",
    "with_classes_of": "class_maps",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"convit_jax.data.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'convit_jax.data' has no attribute '{name}'")
