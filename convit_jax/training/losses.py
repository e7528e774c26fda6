"""The loss of a training step, on mixed and smoothed labels."""

import dataclasses

import jax
import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True)
class Loss:
    """Which loss, and how labels enter it.

    Attributes:
        name: `softmax` or `binary`.
        threshold: `binary` takes labels above it as 1 and the others as 0; None: as they are.
        class_weights: factor of each class's label; () for all 1.
    """

    name: str = "softmax"
    threshold: float | None = None
    class_weights: tuple[float, ...] = ()


def mean_loss(logits: jax.Array, labels: jax.Array, loss: Loss) -> jax.Array:
    """Return the loss, a mean over the images.

    With y the labels, z the logits, σ the sigmoid and w the class weights:

        softmax   Σ_c w_c y_c (-log softmax(z)_c)
        binary    mean_c [w_c y_c (-log σ(z_c)) + (1 - y_c) (-log(1 - σ(z_c)))]

    Weights therefore act on each class's share of a mixed label. In PyTorch these are
    `CrossEntropyLoss(weight=w)`, for labels that are probabilities, and
    `BCEWithLogitsLoss(pos_weight=w)`; the latter without weights is timm's `BinaryCrossEntropy`
    (Wightman et al. 2021) and DeiT III's loss.

    Args:
        logits: [B, num_classes].
        labels: [B, num_classes], from 0 to 1.
        loss: which loss.
    """
    weights = jnp.array(loss.class_weights) if loss.class_weights else None
    if loss.name == "softmax":
        weighted = labels if weights is None else labels * weights
        return optax.softmax_cross_entropy(logits, weighted).mean()
    if loss.threshold is not None:
        labels = (labels > loss.threshold).astype(logits.dtype)
    positive = labels if weights is None else labels * weights
    return -(
        positive * jax.nn.log_sigmoid(logits) + (1 - labels) * jax.nn.log_sigmoid(-logits)
    ).mean()
