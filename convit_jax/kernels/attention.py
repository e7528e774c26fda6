"""Softmax attention and gated positional attention for XLA, in a CPU and a TPU formulation.

Shapes: B images, N tokens, H heads, D channels per head. Scores, softmax and sums are float32
whatever the type of q, k and v; the results have the type of v.
"""

import jax
import jax.numpy as jnp


def two_products(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    positional: jax.Array | None = None,
    gate: jax.Array | None = None,
    positional_scores: jax.Array | None = None,
) -> jax.Array:
    """((1 - gate) softmax(q kᵀ / √D)) v + (gate · positional) v (paper Eq. 6 and 7), for CPUs.

    The two terms of the mixture are multiplied by v separately: the positional map is the same for
    every image, so it is scaled by the gate once instead of once per image, and the division by
    the softmax's sum moves from the N x N map to the N x D result. The paper's row normalisation
    is omitted: both maps already sum to one over the keys.

    Args:
        q, k, v: [B, N, H, D]; there may be fewer queries than keys.
        positional: [H, N, N], positional attention, whose rows sum to one. None for plain
            attention (Eq. 1).
        gate: [H], σ(λ) in [0, 1]; 1 is purely positional attention. None for plain attention.
        positional_scores: [H, N, N], added to the scores before the softmax (vanilla positional
            self-attention, Eq. 4); without a gate. None for no such term.

    Returns:
        [B, N, H, D], of v's type.
    """
    scores = _scores(q, k, positional_scores)
    # The largest score cancels in the quotient. It is subtracted only to avoid overflow, so it
    # needs no gradient.
    largest = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - largest)
    weighted, total = _weighted_sum(weights, v), weights.sum(axis=-1, keepdims=True)
    if gate is None:
        return _to_token_major(weighted / total, v.dtype)
    assert positional is not None  # given together with the gate
    gate = gate.astype(jnp.float32)[:, None, None]
    mixed = weighted * ((1.0 - gate) / total) + _weighted_sum(gate * positional, v)
    return _to_token_major(mixed, v.dtype)


def one_product(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    positional: jax.Array | None = None,
    gate: jax.Array | None = None,
    positional_scores: jax.Array | None = None,
) -> jax.Array:
    """((1 - gate) softmax(q kᵀ / √D) + gate · positional) v (paper Eq. 6 and 7), for TPUs.

    On a TPU every matrix product reads and writes HBM, and the mixture fuses with the softmax
    before it. Arguments and result are those of `two_products`.
    """
    mixed = attention_map(q, k, positional_scores)
    if gate is not None:
        assert positional is not None  # given together with the gate
        gate = gate.astype(jnp.float32)[:, None, None]
        mixed = (1.0 - gate) * mixed + gate * positional
    return _to_token_major(_weighted_sum(mixed, v), v.dtype)


def attention_map(
    q: jax.Array, k: jax.Array, positional_scores: jax.Array | None = None
) -> jax.Array:
    """softmax(q kᵀ / √D), for inspection: q and k [B, N, H, D] → float32 [B, H, N, N].

    `positional_scores` as in `two_products`.
    """
    return jax.nn.softmax(_scores(q, k, positional_scores), axis=-1)


def _scores(q: jax.Array, k: jax.Array, positional_scores: jax.Array | None) -> jax.Array:
    """q kᵀ / √D, plus the positional scores if there are any: float32 [B, H, N, N]."""
    scale = jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    scores = jnp.einsum("bnhd,bmhd->bhnm", q * scale, k, preferred_element_type=jnp.float32)
    return scores if positional_scores is None else scores + positional_scores


def _weighted_sum(maps: jax.Array, v: jax.Array) -> jax.Array:
    """maps · v, with maps [B, H, N, N] or [H, N, N] cast to v's type: float32 [B, H, N, D]."""
    batch_axis = "b" * (maps.ndim - 3)
    return jnp.einsum(
        f"{batch_axis}hnm,bmhd->bhnd", maps.astype(v.dtype), v, preferred_element_type=jnp.float32
    )


def _to_token_major(heads: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """[B, H, N, D] → [B, N, H, D], cast to `dtype`."""
    return heads.transpose(0, 2, 1, 3).astype(dtype)
