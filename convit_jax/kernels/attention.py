"""Softmax attention and its gated form, written for the compiler.

Shapes: B images, N tokens, H heads, D channels a head. Scores, softmax and sums are float32
whatever the type of q, k and v; the results have the type of v.
"""

import jax
import jax.numpy as jnp


def softmax_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q kᵀ / √D) v (paper Eq. 1).

    Args:
        q, k, v: [B, N, H, D].

    Returns:
        [B, N, H, D], of v's type.
    """
    weighted, total = _unnormalised_attention(q, k, v)
    return _to_token_major(weighted / total, v.dtype)


def gated_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, positional: jax.Array, gate: jax.Array
) -> jax.Array:
    """((1 - gate) softmax(q kᵀ / √D) + gate · positional) v (paper Eq. 6 and 7).

    The two halves of the mixture are multiplied with v apart: the positional map is the same for
    every image, so it is scaled by the gate once, not once an image, and the division by the
    softmax's sum moves from the N x N map to the N x D result. The paper's row normalisation is
    left out: both maps already sum to one over the keys.

    Args:
        q, k, v: [B, N, H, D].
        positional: [H, N, N], attention by position; every row sums to one.
        gate: [H], σ(λ) in [0, 1]; 1 is attention by position alone.

    Returns:
        [B, N, H, D], of v's type.
    """
    gate = gate.astype(jnp.float32)[:, None, None]
    weighted, total = _unnormalised_attention(q, k, v)
    by_position = (gate * positional).astype(v.dtype)
    mixed = weighted * ((1.0 - gate) / total) + jnp.einsum(
        "hnm,bmhd->bhnd", by_position, v, preferred_element_type=jnp.float32
    )
    return _to_token_major(mixed, v.dtype)


def attention_map(q: jax.Array, k: jax.Array) -> jax.Array:
    """softmax(q kᵀ / √D) itself, for looking at: [B, N, H, D] twice → float32 [B, H, N, N]."""
    return jax.nn.softmax(_scores(q, k), axis=-1)


def _scores(q: jax.Array, k: jax.Array) -> jax.Array:
    """Q kᵀ / √D, float32 [B, H, N, N]."""
    scale = jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    return jnp.einsum("bnhd,bmhd->bhnm", q * scale, k, preferred_element_type=jnp.float32)


def _unnormalised_attention(
    q: jax.Array, k: jax.Array, v: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """exp(scores) v and the sum of exp(scores): float32 [B, H, N, D] and [B, H, N, 1]."""
    scores = _scores(q, k)
    # The largest score cancels in the quotient: it is subtracted for range only, and carries no
    # gradient.
    largest = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - largest)
    weighted = jnp.einsum(
        "bhnm,bmhd->bhnd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    return weighted, weights.sum(axis=-1, keepdims=True)


def _to_token_major(heads: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """[B, H, N, D] → [B, N, H, D], cast to `dtype`."""
    return heads.transpose(0, 2, 1, 3).astype(dtype)
