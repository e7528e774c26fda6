"""One layer of a vision transformer: plain attention or GPSA, and a feed-forward network."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from convit_jax import kernels
from convit_jax.models.architecture import RIVALS, Architecture
from convit_jax.models.gpsa import GPSA, LINEAR_STD, PSA
from convit_jax.models.initialization import (
    impulse_queries_keys,
    mimetic_queries_keys,
    mimetic_values_output,
)
from convit_jax.models.layers import LayerScale, Linear, drop_path, gelu

LAYER_NORM_EPSILON = 1e-6


class SelfAttention(nnx.Module):
    """Plain multi-head self-attention (paper Eq. 1 and 2)."""

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        *,
        qkv_bias: bool,
        drop_rate: float,
        dtype: jnp.dtype,
        attend: kernels.Attention,
        rngs: nnx.Rngs,
    ) -> None:
        """Initialise the layer; the arguments are those of `GPSA`."""
        width = num_heads * head_dim
        init = nnx.initializers.normal(LINEAR_STD)
        linear = functools.partial(Linear, kernel_init=init, dtype=dtype, rngs=rngs)
        self.num_heads = num_heads
        self.attend = attend
        self.qkv = linear(width, 3 * width, use_bias=qkv_bias)
        self.proj = linear(width, width)
        self.dropout = nnx.Dropout(drop_rate)

    def attention_map(self, x: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """softmax(q kᵀ / √D): [B, N, C] → float32 [B, H, N, N]; `grid` is unused."""
        del grid
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, self.num_heads, -1)
        return kernels.attention_map(qkv[:, :, 0], qkv[:, :, 1])

    def __call__(
        self,
        x: jax.Array,
        grid: tuple[int, int],
        *,
        key: jax.Array | None = None,
        num_outputs: int | None = None,
    ) -> jax.Array:
        """[B, N, C] → [B, N or `num_outputs`, C], as `GPSA`; `grid` is unused."""
        del grid
        parts = self.qkv.apply_in_parts(x, 3 if self.attend.separate_projections else 1)
        heads = self.attend(parts, self.num_heads, num_outputs=num_outputs)
        return self.dropout(self.proj(heads), deterministic=key is None, rngs=key)


def attention_layer(
    architecture: Architecture, attend: kernels.Attention, *, gpsa: bool, rngs: nnx.Rngs
) -> PSA | SelfAttention:
    """Return the attention of one layer, with newly initialised parameters."""
    a = architecture
    make_layer: Callable[..., PSA | SelfAttention] = SelfAttention
    if gpsa:
        gated = a.positional_attention == "gated"
        make_layer = functools.partial(
            functools.partial(GPSA, use_gating=a.use_gating) if gated else PSA,
            locality_strength=a.locality_strength,
            conv_init=a.conv_init,
        )
    layer = make_layer(
        a.num_heads,
        a.head_dim,
        qkv_bias=a.qkv_bias,
        drop_rate=a.drop_rate,
        dtype=jnp.dtype(a.dtype),
        attend=attend,
        rngs=rngs,
    )
    if isinstance(layer, SelfAttention) and a.init in RIVALS:
        _initialise(layer, a, rngs)
    return layer


def _initialise(layer: SelfAttention, architecture: Architecture, rngs: nnx.Rngs) -> None:
    """Replace the weights of a plain layer by those of a rival of the convolutional start."""
    a = architecture
    values = layer.qkv.kernel[...][:, 2 * a.width :]
    if a.init == "mimetic":
        queries_keys = mimetic_queries_keys(rngs.params(), a.num_heads, a.head_dim)
        values, layer.proj.kernel[...] = mimetic_values_output(rngs.params(), a.width)
    else:
        queries_keys = impulse_queries_keys(rngs.params(), a.grid, a.num_heads, a.head_dim)
    layer.qkv.kernel[...] = jnp.concatenate([queries_keys, values], axis=1)


class FeedForward(nnx.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(
        self, width: int, hidden: int, *, drop_rate: float, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> None:
        """`width` channels in and out, `hidden` in between; dropout after each layer."""
        init = nnx.initializers.normal(LINEAR_STD)
        self.fc1 = Linear(width, hidden, kernel_init=init, dtype=dtype, rngs=rngs)
        self.fc2 = Linear(hidden, width, kernel_init=init, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(drop_rate)

    def __call__(self, x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """[..., C] → [..., C]; `key` is the random key of dropout, or None for no dropout."""
        keys = (None, None) if key is None else jax.random.split(key)
        hidden = gelu(self.fc1(x))
        hidden = self.dropout(hidden, deterministic=key is None, rngs=keys[0])
        return self.dropout(self.fc2(hidden), deterministic=key is None, rngs=keys[1])


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), with stochastic depth in training.

    With LayerScale, both branches are multiplied by learned factors before they are added.
    """

    def __init__(
        self,
        architecture: Architecture,
        attend: kernels.Attention,
        *,
        gpsa: bool,
        drop_path_rate: float,
        rngs: nnx.Rngs,
    ) -> None:
        """Initialise a block with GPSA or plain attention, dropped at `drop_path_rate`."""
        a, dtype = architecture, jnp.dtype(architecture.dtype)
        self.norm1 = nnx.LayerNorm(a.width, epsilon=LAYER_NORM_EPSILON, dtype=dtype, rngs=rngs)
        self.attention = attention_layer(a, attend, gpsa=gpsa, rngs=rngs)
        self.norm2 = nnx.LayerNorm(a.width, epsilon=LAYER_NORM_EPSILON, dtype=dtype, rngs=rngs)
        self.mlp = FeedForward(
            a.width, a.hidden_width, drop_rate=a.drop_rate, dtype=dtype, rngs=rngs
        )
        self.drop_path_rate = drop_path_rate
        scale = functools.partial(LayerScale, a.width, a.layer_scale, dtype=dtype)
        self.layer_scale1 = scale() if a.has_layer_scale else None
        self.layer_scale2 = scale() if a.has_layer_scale else None

    def attention_map(self, x: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """Attention map of the block's input: [B, N, C] → float32 [B, H, N, N]."""
        return self.attention.attention_map(self.norm1(x), grid)

    def __call__(
        self,
        x: jax.Array,
        grid: tuple[int, int],
        *,
        key: jax.Array | None = None,
        num_outputs: int | None = None,
    ) -> jax.Array:
        """[B, N, C] → [B, N or `num_outputs`, C].

        Args:
            x: tokens.
            grid: (rows, columns) of patches.
            key: random key of dropout and stochastic depth, or None for neither.
            num_outputs: compute the outputs of the first `num_outputs` tokens only; None for all.
        """
        keys = (None,) * 4 if key is None else jax.random.split(key, 4)
        branch = self.attention(self.norm1(x), grid, key=keys[0], num_outputs=num_outputs)
        if self.layer_scale1 is not None:
            branch = self.layer_scale1(branch)
        x = x[:, :num_outputs] + drop_path(branch, self.drop_path_rate, keys[1])
        branch = self.mlp(self.norm2(x), key=keys[2])
        if self.layer_scale2 is not None:
            branch = self.layer_scale2(branch)
        return x + drop_path(branch, self.drop_path_rate, keys[3])
