"""Attention for NVIDIA GPUs: cuDNN's fused softmax attention plus the positional term.

The content attention maps are never written to the GPU's memory. The positional map is the same
for every image, so its term of the mixture is one matrix product for the whole batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

HOPPER = (9, 0)
_AMPERE = (8, 0)
_MAX_HEAD_DIM = 128


def cudnn_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    positional: jax.Array | None = None,
    gate: jax.Array | None = None,
) -> jax.Array:
    """(1 - gate) softmax(q kᵀ / √D) v + (gate · positional) v (paper Eq. 6 and 7).

    Arguments and result are those of `attention.two_products`, for types and shapes that
    `unsupported_reason` accepts.
    """
    content = _content_attention(q, k, v)
    if gate is None:
        return content
    assert positional is not None  # given together with the gate
    gate = gate.astype(jnp.float32)
    gated_positional = (gate[:, None, None] * positional).astype(v.dtype)
    position = jnp.einsum("hnm,bmhd->bnhd", gated_positional, v)
    return ((1.0 - gate)[:, None] * content + position).astype(v.dtype)


def unsupported_reason(
    platform: str, capability: tuple[int, int], dtype: jnp.dtype, head_dim: int, tokens: int
) -> str | None:
    """Return why cuDNN cannot compute this attention, or None if it can.

    Args:
        platform: "cuda", "rocm", "cpu" or "tpu".
        capability: compute capability of the GPU, (9, 0) for Hopper.
        dtype: of queries, keys and values.
        head_dim: D.
        tokens: N.
    """
    if platform != "cuda":
        return f"it runs on NVIDIA GPUs, and this is compiled for {platform}"
    if capability < _AMPERE:
        return (
            "it needs a GPU of compute capability 8.0 or newer, and this one has "
            f"{capability[0]}.{capability[1]}"
        )
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return f"it computes in bfloat16, and config.model.dtype is {jnp.dtype(dtype)}"
    if head_dim % 8 or head_dim > _MAX_HEAD_DIM:
        return (
            f"it needs a multiple of 8 channels per head, at most {_MAX_HEAD_DIM}, and these "
            f"heads have {head_dim}"
        )
    if tokens % 128 == 64 and capability >= HOPPER:
        return f"its gradients are NaN for {tokens} tokens (64 modulo 128) on this kind of GPU"
    return None


@jax.custom_vjp
def _content_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q kᵀ / √D) v."""
    return _softmax_attention(q, k, v)


def _softmax_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array | None = None
) -> jax.Array:
    """JAX's cuDNN attention; only the first `lengths[b]` tokens of image b count, or all."""
    return jax.nn.dot_product_attention(
        q, k, v, implementation="cudnn", query_seq_lengths=lengths, key_value_seq_lengths=lengths
    )


def _content_attention_vjp(
    q: jax.Array, k: jax.Array, v: jax.Array
) -> tuple[jax.Array, Callable[..., Any]]:
    """The same, with its VJP.

    JAX computes gradients for an even number of tokens only. With a class token there are 197, so
    a masked token is added.
    """
    batch, tokens = q.shape[:2]

    def padded(*arrays: jax.Array) -> jax.Array:
        q, k, v = (jnp.pad(array, ((0, 0), (0, 1), (0, 0), (0, 0))) for array in arrays)
        return _softmax_attention(q, k, v, jnp.full(batch, tokens, jnp.int32))[:, :tokens]

    return jax.vjp(padded if tokens % 2 else _softmax_attention, q, k, v)


_content_attention.defvjp(_content_attention_vjp, lambda vjp, d_out: vjp(d_out))
