"""Masking a trained model's absolute positions, content or position (paper Tables 5 and 6)."""

import jax.numpy as jnp
from flax import nnx

from convit_jax.analysis.locality import gpsa_attention
from convit_jax.errors import InputError
from convit_jax.models import GPSA, VisionTransformer


def mask_pos_embed(model: VisionTransformer) -> None:
    """Set the absolute position embedding to zero, in place (paper Table 5).

    Raises:
        InputError: the model has no absolute positions.
    """
    if model.pos_embed is None:
        raise InputError("the model has no absolute positions to mask")
    model.pos_embed[...] = jnp.zeros_like(model.pos_embed[...])


def mask_content(model: VisionTransformer, num_layers: int) -> None:
    """Set σ(λ) = 1 in the first GPSA layers, in place: positional attention only (Table 6)."""
    _set_gates(model, num_layers, jnp.inf)


def mask_position(model: VisionTransformer, num_layers: int) -> None:
    """Set σ(λ) = 0 in the first GPSA layers, in place: content attention only (Table 6)."""
    _set_gates(model, num_layers, -jnp.inf)


def _set_gates(model: VisionTransformer, num_layers: int, gating: float) -> None:
    """Set λ of all heads in the first GPSA layers; σ(±∞) is exactly 1 or 0."""
    layers = gpsa_attention(model)
    if not 1 <= num_layers <= len(layers):
        reason = f"its GPSA layers are the first {len(layers)}" if layers else "it has none"
        raise InputError(f"cannot mask {num_layers} GPSA layers of the model: {reason}")
    for layer in layers[:num_layers]:
        if not isinstance(layer, GPSA):
            raise InputError(
                "the model's positional attention is vanilla: content and position share one "
                "softmax, so that neither can be masked by a gate"
            )
        # nnx.data: the attribute of an ungated layer is None, a static attribute to nnx.
        layer.gating = nnx.data(nnx.Param(jnp.full(layer.num_heads, gating)))
