"""Gated positional self-attention (GPSA), the layer of ConViT (d'Ascoli et al. 2021, §3).

Each head attends by content, by position, or by a learned mixture of the two. It is initialised as
one tap of a convolution and can learn to leave that locality. The layer without a gate, vanilla
positional self-attention (PSA, Eq. 4), is what the paper compares it with in its Fig. 9.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convit_jax import kernels
from convit_jax.errors import InputError
from convit_jax.models.layers import Linear

# Standard deviation of the linear layers of a vision transformer at initialisation. PyTorch's
# truncation at ±2 is 100 standard deviations out, so a plain normal is the same distribution.
LINEAR_STD = 0.02


def relative_positions(grid: tuple[int, int]) -> jax.Array:
    """r_ij = (d1, d2, |d|²), with d the offset of key patch j from query patch i (paper Eq. 5).

    The channels are in the order of the released weights; in the paper it is (|d|², d1, d2). d1 is
    along x (columns), d2 along y (rows).

    Args:
        grid: (rows, columns) of patches.

    Returns:
        float32 [N, N, 3] with N = rows · columns, patches in row-major order, unit: patches.
    """
    y, x = jnp.divmod(jnp.arange(grid[0] * grid[1]), grid[1])
    d1, d2 = _offsets(x), _offsets(y)
    return jnp.stack([d1, d2, d1**2 + d2**2], axis=-1)


def _offsets(positions: jax.Array) -> jax.Array:
    """Return the offset of every position from every other: int [n] → float32 [from n, to n]."""
    return (positions[None, :] - positions[:, None]).astype(jnp.float32)


def attention_centres(num_heads: int) -> np.ndarray:
    """Δ of each head, the offset that it attends to after convolutional init (paper Eq. 5).

    The heads are the taps of a √H x √H convolution kernel, one patch apart and centred on the
    query: {-1, 0, 1}² for nine heads, ±½ for four. With an even kernel no tap falls on a patch.

    Args:
        num_heads: H, a perfect square.

    Returns:
        float32 [H, 2], (Δ1, Δ2) of each head; Δ1, along x, varies slowest.

    Raises:
        InputError: `num_heads` is not a perfect square.
    """
    side = math.isqrt(num_heads)
    if side**2 != num_heads:
        raise InputError(
            f"num_heads={num_heads} is not a perfect square, so the heads cannot form the taps of "
            f"a square convolution kernel: use {side**2} or {(side + 1) ** 2} heads, or "
            "conv_init=False"
        )
    taps = np.arange(side, dtype=np.float32) - (side - 1) / 2
    delta1, delta2 = np.meshgrid(taps, taps, indexing="ij")
    return np.stack([delta1.ravel(), delta2.ravel()], axis=-1)


def convolutional_positions(num_heads: int, locality_strength: float) -> np.ndarray:
    """v_pos = -α (1, -2Δ1, -2Δ2) of each head (paper Eq. 5).

    v_pos · r_ij = -α |d - Δ|² + α |Δ|², which the softmax turns into a Gaussian around Δ. As α
    grows, the attention tends to a one-hot at Δ, and the layer to a convolution.

    Args:
        num_heads: H, a perfect square.
        locality_strength: α, in 1/patches²: how sharply each head focuses on its centre.

    Returns:
        float32 [3, H] in the channel order of `relative_positions`.
    """
    delta1, delta2 = attention_centres(num_heads).T
    v_pos = np.stack([2 * delta1, 2 * delta2, -np.ones_like(delta1)])
    return np.float32(locality_strength) * v_pos


def _positional_scores(
    v1: jax.Array, v2: jax.Array, v3: jax.Array, grid: tuple[int, int]
) -> jax.Array:
    """v_pos · r_ij: float32 [H, N, N] of the components of v_pos, [H, 1, 1] each."""
    d1, d2, squared = jnp.moveaxis(relative_positions(grid), -1, 0)
    return v1 * d1 + v2 * d2 + v3 * squared


def _identity(key: jax.Array, shape: tuple[int, int], dtype: jnp.dtype) -> jax.Array:
    """W_val = I, so that the layer is initially a pure convolution (paper Eq. 5)."""
    del key
    return jnp.eye(*shape, dtype=dtype)


class PSA(nnx.Module):
    """Vanilla positional self-attention: scores of content and position in one softmax (Eq. 4).

    Attributes:
        qk: W_qry and W_key as one projection, queries first.
        v: W_val; the identity at convolutional initialisation.
        pos_proj: v_pos of each head; its bias, part of the released weights, cancels in the
            softmax.
        proj: W_out.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        *,
        qkv_bias: bool = False,
        locality_strength: float = 1.0,
        conv_init: bool = True,
        drop_rate: float = 0.0,
        dtype: jnp.dtype = jnp.float32,
        attend: kernels.Attention = kernels.DEFAULT_ATTENTION,
        rngs: nnx.Rngs,
    ) -> None:
        """Initialise the layer.

        Args:
            num_heads: H; a perfect square if `conv_init`.
            head_dim: channels per head.
            qkv_bias: whether queries, keys and values have biases.
            locality_strength: α of the convolutional initialisation.
            conv_init: start as a convolution; otherwise from small random values.
            drop_rate: dropout of the output.
            dtype: type of the arithmetic; parameters are float32.
            attend: computes the attention, for the devices that the layer is compiled for.
            rngs: random streams for the parameters.
        """
        width = num_heads * head_dim
        normal = nnx.initializers.normal(LINEAR_STD)
        linear = functools.partial(Linear, kernel_init=normal, dtype=dtype, rngs=rngs)

        self.num_heads = num_heads
        self.attend = attend
        self.qk = linear(width, 2 * width, use_bias=qkv_bias)
        self.v = linear(
            width, width, use_bias=qkv_bias, kernel_init=_identity if conv_init else normal
        )
        # Always float32: bfloat16 rounds integers above 256, which |d|² exceeds.
        self.pos_proj = linear(3, num_heads, dtype=jnp.float32)
        if conv_init:
            self.pos_proj.kernel[...] = convolutional_positions(num_heads, locality_strength)
        self.proj = linear(width, width)
        self.dropout = nnx.Dropout(drop_rate)

    def positional_scores(self, grid: tuple[int, int]) -> jax.Array:
        """v_pos · r_ij: float32 [H, N, N], the same for every image (paper Eq. 4)."""
        v1, v2, v3 = self.pos_proj.kernel[...][:, :, None, None]
        return _positional_scores(v1, v2, v3, grid)

    def positional_attention(self, grid: tuple[int, int]) -> jax.Array:
        """softmax(v_pos · r_ij): float32 [H, N, N], the same for every image (paper Eq. 7).

        v_pos · r_ij is a sum of a term of d1 and one of d2. So the softmax's sum over all keys is a
        product of sums over columns and rows, and needs no pass over the N x N scores.
        """
        v1, v2, v3 = self.pos_proj.kernel[...][:, :, None, None]
        rows, columns = (_offsets(jnp.arange(length)) for length in grid)
        row_sums = jax.nn.logsumexp(v2 * rows + v3 * rows**2, axis=-1)
        column_sums = jax.nn.logsumexp(v1 * columns + v3 * columns**2, axis=-1)
        sums = row_sums[:, :, None] + column_sums[:, None, :]
        scores = _positional_scores(v1, v2, v3, grid)
        return jnp.exp(scores - sums.reshape(self.num_heads, -1, 1))

    def _queries_keys(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        qk = self.qk(x).reshape(*x.shape[:2], 2, self.num_heads, -1)
        return qk[:, :, 0], qk[:, :, 1]

    def content_attention(self, x: jax.Array) -> jax.Array:
        """softmax(Q Kᵀ / √D): [B, N, C] → float32 [B, H, N, N] (paper Eq. 7)."""
        return kernels.attention_map(*self._queries_keys(x))

    def attention_map(self, x: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """softmax(Q Kᵀ / √D + v_pos · r_ij): [B, N, C] → float32 [B, H, N, N] (paper Eq. 4)."""
        return kernels.attention_map(*self._queries_keys(x), self.positional_scores(grid))

    def __call__(
        self,
        x: jax.Array,
        grid: tuple[int, int],
        *,
        key: jax.Array | None = None,
        num_outputs: int | None = None,
    ) -> jax.Array:
        """concat_h(A_h X W_val) W_out (paper Eq. 2).

        Args:
            x: tokens, [B, N, C]; patches only, N = rows · columns of `grid`.
            grid: (rows, columns) of patches.
            key: randomness of dropout, or None for none.
            num_outputs: compute the outputs of the first `num_outputs` tokens only; None for all.

        Returns:
            [B, N or `num_outputs`, C].
        """
        parts = self.qk.apply_in_parts(x, 2 if self.attend.separate_projections else 1)
        heads = self.attend(
            (*parts, self.v(x)), self.num_heads, **self._position(grid), num_outputs=num_outputs
        )
        return self.dropout(self.proj(heads), deterministic=key is None, rngs=key)

    def _position(self, grid: tuple[int, int]) -> dict[str, jax.Array]:
        """What `kernels.Attention` needs to know of the positions."""
        return {"positional_scores": self.positional_scores(grid)}


class GPSA(PSA):
    """Gated positional self-attention (paper Eq. 6 and 7).

    Attributes:
        gating: λ of each head, or None if the mixture is fixed at one half (`use_gating` off).
    """

    def __init__(
        self, num_heads: int, head_dim: int, *, use_gating: bool = True, **options: Any
    ) -> None:
        """Initialise the layer.

        Args:
            num_heads: H; a perfect square if `conv_init`.
            head_dim: channels per head.
            use_gating: learn λ, initially 1; otherwise σ(λ) is fixed at one half.
            **options: those of `PSA`.
        """
        super().__init__(num_heads, head_dim, **options)
        self.gating = nnx.Param(jnp.ones(num_heads)) if use_gating else None

    def gate(self) -> jax.Array:
        """σ(λ): float32 [H], the weight of positional attention in each head."""
        if self.gating is None:
            return jnp.full((self.num_heads,), 0.5)
        return jax.nn.sigmoid(self.gating[...])

    def attention_map(self, x: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """A, the gated mixture (paper Eq. 7): [B, N, C] → float32 [B, H, N, N]."""
        gate = self.gate()[:, None, None]
        return (1 - gate) * self.content_attention(x) + gate * self.positional_attention(grid)

    def _position(self, grid: tuple[int, int]) -> dict[str, jax.Array]:
        return {"positional": self.positional_attention(grid), "gate": self.gate()}
