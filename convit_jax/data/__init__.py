"""The input pipeline: named examples → host transforms → the global batch of a step.

Names are imported on first use, so that a worker process imports only what reading needs.
"""

import importlib
from typing import Any

_MODULE_OF = {
    "Batch": "loader",
    "BrokenImageCounter": "health",
    "EpochOrder": "order",
    "EvalTransform": "images.transforms",
    "LoaderOptions": "loader",
    "Source": "sources.source",
    "TrainTransform": "images.transforms",
    "WorkerPool": "workers",
    "worker_pool": "loader",
    "eval_batches": "loader",
    "num_eval_batches": "loader",
    "open_source": "sources.opening",
    "align_classes": "sources.class_maps",
    "describe_classes": "sources.subsets",
    "evenly_spaced": "sources.subsets",
    "hold_out": "sources.subsets",
    "occurring_classes": "sources.subsets",
    "restrict_to_classes": "sources.subsets",
    "evenly_spaced_subset": "sources.subsets",
    "subset": "sources.subsets",
    "train_batches": "loader",
    "align_to_training_classes": "sources.class_maps",
}

__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"convit_jax.data.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'convit_jax.data' has no attribute '{name}'")
