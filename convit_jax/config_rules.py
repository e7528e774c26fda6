"""What the values of a configuration must be, key by key, besides their types."""

from typing import Any

from convit_jax import kernels
from convit_jax.errors import InputError
from convit_jax.typed_config import get

_HOLDOUT_RULE = "a share such as 0.1 where data.eval is '', and 0 where it names examples"


def check_ranges(config: Any) -> None:
    """Raises InputError for the first value of a `Config` that makes no sense."""
    rotations = ("auto", "honour", "ignore")
    o, c, d = config.optimizer, config.checkpoint, config.data
    for holds, name, expected in (
        (config.batch_size >= 1, "batch_size", "at least 1"),
        (config.eval_batch_size >= 1, "eval_batch_size", "at least 1"),
        (config.attention_images >= 0, "attention_images", "0 (none) or more"),
        (config.profile_at >= 0, "profile_at", "a step, or 0 for none"),
        (0 <= config.label_smoothing < 1, "label_smoothing", "in [0, 1)"),
        (0 <= config.ema_decay < 1, "ema_decay", "in [0, 1)"),
        (o.learning_rate > 0, "optimizer.learning_rate", "above 0"),
        (o.learning_rate_batch >= 1, "optimizer.learning_rate_batch", "at least 1"),
        (o.clip_norm >= 0, "optimizer.clip_norm", "0 (off) or above"),
        (o.accumulate >= 1, "optimizer.accumulate", "at least 1"),
        (config.batch_size % o.accumulate == 0, "optimizer.accumulate", "a divisor of batch_size"),
        (len(config.data.image_size) in (1, 2), "data.image_size", "(side,) or (height, width)"),
        (config.mesh.fsdp >= 1, "mesh.fsdp", "at least 1"),
        (c.keep_latest >= 1, "checkpoint.keep_latest", "at least 1"),
        (c.keep_best >= 0, "checkpoint.keep_best", "0 or more"),
        (o.schedule_every in ("step", "epoch"), "optimizer.schedule_every", "'step' or 'epoch'"),
        (o.schedule_lag >= 0, "optimizer.schedule_lag", "0 or more"),
        (0 < d.fraction <= 1, "data.fraction", "above 0, up to 1"),
        (0 < o.layer_decay <= 1, "optimizer.layer_decay", "above 0, up to 1"),
        (0 <= d.holdout < 1, "data.holdout", "a share, in [0, 1)"),
        (bool(d.eval) != bool(d.holdout), "data.holdout", _HOLDOUT_RULE),
        (d.fraction_choice in ("first", "random"), "data.fraction_choice", "'first' or 'random'"),
        (d.classes >= 0 and d.classes != 1, "data.classes", "0 (all), or at least 2"),
        (0 < d.eval_crop <= 1, "data.eval_crop", "above 0, up to 1"),
        (0 <= d.max_broken < 1, "data.max_broken", "a share, in [0, 1)"),
        (d.exif_rotation in rotations, "data.exif_rotation", f"one of {', '.join(rotations)}"),
        (d.num_workers >= -1, "data.num_workers", "0 or more, or -1 for one for each core"),
        (d.prefetch_batches >= 1, "data.prefetch_batches", "at least 1"),
        (config.augment.repeats >= 1, "augment.repeats", "at least 1"),
        (config.attention in kernels.FORMS, "attention", f"one of {', '.join(kernels.FORMS)}"),
    ):
        if not holds:
            raise InputError(f"config.{name}={get(config, name)!r}: expected {expected}")
