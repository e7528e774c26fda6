"""Taking away what a trained model sees by: the paper's Tables 5 and 6, at test time."""

import jax.numpy as jnp
from flax import nnx

from convit_jax.errors import InputError
from convit_jax.models import VisionTransformer


def mask_pos_embed(model: VisionTransformer) -> None:
    """Takes the absolute positions away, in place (paper Table 5).

    Raises:
        InputError: the model has none.
    """
    if model.pos_embed is None:
        raise InputError("the model has no absolute positions to mask")
    model.pos_embed[...] = jnp.zeros_like(model.pos_embed[...])


def mask_content(model: VisionTransformer, layers: int) -> None:
    """σ(λ) = 1 in the first GPSA layers: attention by position alone, in place (paper Table 6)."""
    _set_gates(model, layers, jnp.inf)


def mask_position(model: VisionTransformer, layers: int) -> None:
    """σ(λ) = 0 in the first GPSA layers: attention by content alone, in place (paper Table 6)."""
    _set_gates(model, layers, -jnp.inf)


def _set_gates(model: VisionTransformer, layers: int, gating: float) -> None:
    """Sets λ of all heads in the first `layers` layers; σ(±∞) is exactly 1 or 0."""
    a = model.architecture
    if not 1 <= layers <= a.gpsa_layers:
        has = f"its GPSA layers are the first {a.gpsa_layers}" if a.gpsa_layers else "it has none"
        raise InputError(f"cannot mask {layers} GPSA layers of the model: {has}")
    for block in model.blocks[:layers]:
        # nnx.data: an ungated layer has None there, which is no data.
        block.attention.gating = nnx.data(nnx.Param(jnp.full(a.num_heads, gating)))
