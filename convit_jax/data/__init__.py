"""The input pipeline: named examples → host transforms → the global batch of a step.

Names are imported on first use, so that a worker process imports only what reading needs.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convit_jax.data.health import BrokenImageCounter as BrokenImageCounter
    from convit_jax.data.images.transforms import EvalTransform as EvalTransform
    from convit_jax.data.images.transforms import TrainTransform as TrainTransform
    from convit_jax.data.loader import Batch as Batch
    from convit_jax.data.loader import LoaderOptions as LoaderOptions
    from convit_jax.data.loader import eval_batches as eval_batches
    from convit_jax.data.loader import num_eval_batches as num_eval_batches
    from convit_jax.data.loader import train_batches as train_batches
    from convit_jax.data.order import EpochOrder as EpochOrder
    from convit_jax.data.sources.class_maps import align_classes as align_classes
    from convit_jax.data.sources.class_maps import (
        align_to_training_classes as align_to_training_classes,
    )
    from convit_jax.data.sources.opening import open_source as open_source
    from convit_jax.data.sources.source import Source as Source
    from convit_jax.data.sources.subsets import describe_classes as describe_classes
    from convit_jax.data.sources.subsets import evenly_spaced as evenly_spaced
    from convit_jax.data.sources.subsets import evenly_spaced_subset as evenly_spaced_subset
    from convit_jax.data.sources.subsets import hold_out as hold_out
    from convit_jax.data.sources.subsets import occurring_classes as occurring_classes
    from convit_jax.data.sources.subsets import restrict_to_classes as restrict_to_classes
    from convit_jax.data.sources.subsets import subset as subset

_MODULE_OF = {
    "Batch": "loader",
    "BrokenImageCounter": "health",
    "EpochOrder": "order",
    "EvalTransform": "images.transforms",
    "LoaderOptions": "loader",
    "Source": "sources.source",
    "TrainTransform": "images.transforms",
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
