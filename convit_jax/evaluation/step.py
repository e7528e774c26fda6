"""One evaluation step: a pure function of (parameters, batch)."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from convit_jax.data.mixing import normalise

Metrics = dict[str, jax.Array]
# (parameters, normalised images [B, H, W, channels]) → logits [B, num_classes].
Predict = Callable[[Any, jax.Array], jax.Array]


def make_eval_step(
    model: nnx.GraphDef,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    class_subset: Sequence[int] | None = None,
    confusion: bool = False,
    teacher: Predict | None = None,
) -> Callable[..., Metrics]:
    """Return the function (params, batch) → sums over the batch's rows of mask 1.

    With a teacher it is (params, batch, teacher's parameters) → sums.

    The batch has `image`, `mask` [B], and `label`: [B], or if images may have several labels or
    none, [B, num_classes] of 0 and 1. Rows without a label are ignored. A prediction is correct if
    any of the image's labels is the top class, or among the top five; the loss is the mean
    cross-entropy over the image's labels.

    Args:
        model: the model's structure.
        mean, std: mean and standard deviation of each image channel, in units of full scale.
        class_subset: the classes to choose from, of all that the model knows; None for all.
        confusion: also count how often each label (row) was predicted as each class (column), for
            data with one label per image.
        teacher: also count in how many images the top class is the teacher's, as `agreement`.
    """

    def in_subset(logits: jax.Array) -> jax.Array:
        if class_subset is None:
            return logits
        is_in = jnp.zeros(logits.shape[-1], bool).at[jnp.array(class_subset)].set(True)
        return jnp.where(is_in, logits, -jnp.inf)

    def eval_step(params: Any, batch: dict[str, jax.Array], teacher_params: Any = None) -> Metrics:
        images = normalise(batch["image"], mean, std)
        logits = in_subset(nnx.merge(model, nnx.State(params))(images))
        label = batch["label"]
        is_label = jax.nn.one_hot(label, logits.shape[-1]) if label.ndim == 1 else label
        is_label = is_label.astype(bool)
        num_labels = is_label.sum(axis=-1)
        mask = batch["mask"] * (num_labels > 0)
        log_probabilities = jax.nn.log_softmax(logits)
        label_log_probabilities = jnp.where(is_label, log_probabilities, 0.0).sum(axis=-1)
        losses = -label_log_probabilities / jnp.maximum(num_labels, 1)
        # Negated so that NaN counts as above any label, and a NaN label is never correct.
        label_logit = jnp.where(is_label, logits, -jnp.inf).max(axis=-1, keepdims=True)
        rank = jnp.sum(~(logits <= label_logit), axis=-1)
        sums = {
            # The label of padding may be outside the subset, with an infinite loss: ∞ · 0 is NaN.
            "loss": jnp.sum(jnp.where(mask > 0, losses, 0.0)),
            "accuracy": jnp.sum((rank < 1) * mask),
            "accuracy_top5": jnp.sum((rank < 5) * mask),
            "examples": jnp.sum(mask),
        }
        if teacher is not None:
            of_teacher = in_subset(teacher(teacher_params, images)).argmax(axis=-1)
            sums["agreement"] = jnp.sum((logits.argmax(axis=-1) == of_teacher) * mask)
        if confusion:
            table = jnp.zeros((logits.shape[-1],) * 2)
            sums["confusion"] = table.at[label, logits.argmax(axis=-1)].add(mask)
        return sums

    return eval_step
