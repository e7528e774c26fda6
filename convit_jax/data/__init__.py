"""The input pipeline: named examples → host transforms → the global batch of a step.

Names are imported on first use, so that a worker process imports only what reading needs.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convit_jax.data.health import BrokenImageCounter
    from convit_jax.data.images.transforms import EvalTransform, TrainTransform
    from convit_jax.data.loader import (
        Batch,
        LoaderOptions,
        eval_batches,
        num_eval_batches,
        train_batches,
        worker_pool,
    )
    from convit_jax.data.order import EpochOrder
    from convit_jax.data.sources.class_maps import align_classes, align_to_training_classes
    from convit_jax.data.sources.opening import open_source
    from convit_jax.data.sources.source import Source
    from convit_jax.data.sources.subsets import (
        class_counts,
        describe_classes,
        evenly_spaced,
        evenly_spaced_subset,
        hold_out,
        occurring_classes,
        restrict_to_classes,
        subset,
    )
    from convit_jax.data.workers import WorkerPool

_NAMES = {
    "health": ("BrokenImageCounter",),
    "images.transforms": ("EvalTransform", "TrainTransform"),
    "loader": (
        *("Batch", "LoaderOptions", "eval_batches", "num_eval_batches", "train_batches"),
        "worker_pool",
    ),
    "order": ("EpochOrder",),
    "sources.class_maps": ("align_classes", "align_to_training_classes"),
    "sources.opening": ("open_source",),
    "sources.source": ("Source",),
    "sources.subsets": (
        *("class_counts", "describe_classes", "evenly_spaced", "evenly_spaced_subset", "hold_out"),
        *("occurring_classes", "restrict_to_classes", "subset"),
    ),
    "workers": ("WorkerPool",),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"convit_jax.data.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'convit_jax.data' has no attribute '{name}'")
