"""Attention for NVIDIA's GPUs: cuDNN's fused softmax attention, and position beside it.

The maps of content never reach the GPU's memory. The positional map is the same for every image,
so its half of the mixture is one product for the whole batch.
"""

import jax
import jax.numpy as jnp

HOPPER = (9, 0)
_AMPERE = (8, 0)
_MAX_HEAD_CHANNELS = 128


def cudnn_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    positional: jax.Array | None = None,
    gate: jax.Array | None = None,
) -> jax.Array:
    """(1 - gate) softmax(q kᵀ / √D) v + (gate · positional) v (paper Eq. 6 and 7).

    Arguments and result are those of `attention.two_products`, of the types and shapes that
    `refusal` lets pass.
    """
    by_content = _content(q, k, v)
    if gate is None:
        return by_content
    gate = gate.astype(jnp.float32)
    scaled = (gate[:, None, None] * positional).astype(v.dtype)
    by_position = jnp.einsum("hnm,bmhd->bnhd", scaled, v)
    return ((1.0 - gate)[:, None] * by_content + by_position).astype(v.dtype)


def refusal(
    platform: str, capability: tuple[int, int], dtype: jnp.dtype, head_channels: int, tokens: int
) -> str | None:
    """Why cuDNN cannot compute such attention, or None where it can.

    Args:
        platform: "cuda", "rocm", "cpu" or "tpu".
        capability: of the GPU, (9, 0) for a Hopper.
        dtype: of queries, keys and values.
        head_channels: D.
        tokens: N.
    """
    if platform != "cuda":
        return f"it runs on NVIDIA's GPUs, and this is compiled for {platform}"
    if capability < _AMPERE:
        return "it needs a GPU of compute capability 8.0 or newer, and this one has " + ".".join(
            map(str, capability)
        )
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return f"it computes in bfloat16, and config.model.dtype is {jnp.dtype(dtype)}"
    if head_channels % 8 or head_channels > _MAX_HEAD_CHANNELS:
        return (
            f"its heads have a multiple of 8 channels, at most {_MAX_HEAD_CHANNELS}, and these "
            f"have {head_channels}"
        )
    if tokens % 128 == 64 and capability >= HOPPER:
        return f"its gradients are not numbers for {tokens} tokens (64 modulo 128) on such a GPU"
    return None


@jax.custom_vjp
def _content(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q kᵀ / √D) v."""
    return _softmax_attention(q, k, v)


def _softmax_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array | None = None
) -> jax.Array:
    """As JAX has it; of each image, so many tokens count as `lengths` says, or all."""
    return jax.nn.dot_product_attention(
        q, k, v, implementation="cudnn", query_seq_lengths=lengths, key_value_seq_lengths=lengths
    )


def _content_with_gradient(
    q: jax.Array, k: jax.Array, v: jax.Array
) -> tuple[jax.Array, jax.tree_util.Partial]:
    """The same, and the function of its gradient.

    JAX computes gradients of an even number of tokens only. With a class token there are 197: a
    token that does not count is added.
    """
    batch, tokens = q.shape[:2]

    def padded(*parts: jax.Array) -> jax.Array:
        even = (jnp.pad(part, ((0, 0), (0, 1), (0, 0), (0, 0))) for part in parts)
        return _softmax_attention(*even, jnp.full(batch, tokens, jnp.int32))[:, :tokens]

    return jax.vjp(padded if tokens % 2 else _softmax_attention, q, k, v)


_content.defvjp(_content_with_gradient, lambda gradient_of, gradient: gradient_of(gradient))
