"""The data road: named examples → host transforms → the global batch of a step."""

from convit_jax.data.loader import (
    Batch,
    Reading,
    Shard,
    eval_batches,
    num_eval_batches,
    train_batches,
)
from convit_jax.data.order import EpochOrder
from convit_jax.data.sources import Source, open_source
from convit_jax.data.transforms import EvalTransform, TrainTransform

__all__ = [
    "Batch",
    "EpochOrder",
    "EvalTransform",
    "Reading",
    "Shard",
    "Source",
    "TrainTransform",
    "eval_batches",
    "num_eval_batches",
    "open_source",
    "train_batches",
]
