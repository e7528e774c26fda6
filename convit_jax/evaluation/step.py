"""One evaluation step: a pure function of (parameters, batch)."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from convit_jax.data.mixing import normalise

Metrics = dict[str, jax.Array]


def make_eval_step(
    model: nnx.GraphDef,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    class_subset: Sequence[int] | None = None,
    confusion: bool = False,
) -> Callable[[Any, dict[str, jax.Array]], Metrics]:
    """The function (params, batch) → sums over the batch's rows of mask 1.

    The batch has `image`, `mask` [B], and `label`: [B], or where an image may have several or none,
    [B, num_classes] of 0 and 1. Rows without a label count for nothing. A hit is any of an image's
    labels among the first, or the first five, classes; the loss is the labels' mean cross-entropy.

    Args:
        model: the model's structure.
        mean, std: of the images, for each channel, in units of full scale.
        class_subset: the classes that are told apart, of all that the model knows; None for all.
        confusion: also count how often a label (row) was taken for a class (column), for data of
            one label an image.
    """

    def eval_step(params: Any, batch: dict[str, jax.Array]) -> Metrics:
        images = normalise(batch["image"], mean, std)
        logits = nnx.merge(model, nnx.State(params))(images)
        if class_subset is not None:
            told_apart = jnp.zeros(logits.shape[-1], bool).at[jnp.array(class_subset)].set(True)
            logits = jnp.where(told_apart, logits, -jnp.inf)
        label = batch["label"]
        true = jax.nn.one_hot(label, logits.shape[-1]) if label.ndim == 1 else label
        true = true.astype(bool)
        count = true.sum(axis=-1)
        mask = batch["mask"] * (count > 0)
        log_probabilities = jax.nn.log_softmax(logits)
        losses = -jnp.where(true, log_probabilities, 0.0).sum(axis=-1) / jnp.maximum(count, 1)
        # NaN is no number: it is never the best, and what it is compared with is behind it.
        of_label = jnp.where(true, logits, -jnp.inf).max(axis=-1, keepdims=True)
        rank = jnp.sum(~(logits <= of_label), axis=-1)
        sums = {
            # Padding has a label of its own, which may not be among those told apart: ∞ · 0.
            "loss": jnp.sum(jnp.where(mask > 0, losses, 0.0)),
            "accuracy": jnp.sum((rank < 1) * mask),
            "accuracy_top5": jnp.sum((rank < 5) * mask),
            "examples": jnp.sum(mask),
        }
        if confusion:
            table = jnp.zeros((logits.shape[-1],) * 2)
            sums["confusion"] = table.at[label, logits.argmax(axis=-1)].add(mask)
        return sums

    return eval_step
