"""The vision transformer around the attention: patches, blocks, and both families' whole model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convit_jax import kernels
from convit_jax.errors import InputError
from convit_jax.models.architecture import Architecture
from convit_jax.models.gpsa import GPSA, LINEAR_STD
from convit_jax.models.layers import Linear, drop_path, gelu

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
        """Makes the layer; the arguments are those of `GPSA`."""
        width = num_heads * head_dim
        init = nnx.initializers.normal(LINEAR_STD)
        self.num_heads = num_heads
        self.attend = attend
        self.qkv = Linear(
            width, 3 * width, use_bias=qkv_bias, kernel_init=init, dtype=dtype, rngs=rngs
        )
        self.proj = Linear(width, width, kernel_init=init, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(drop_rate)

    def attention_map(self, x: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """softmax(q kᵀ / √D): [B, N, C] → float32 [B, H, N, N]; `grid` is not needed."""
        del grid
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, self.num_heads, -1)
        return kernels.attention_map(qkv[:, :, 0], qkv[:, :, 1])

    def __call__(
        self,
        x: jax.Array,
        grid: tuple[int, int],
        *,
        key: jax.Array | None = None,
        outputs: int | None = None,
    ) -> jax.Array:
        """[B, N, C] → [B, N or `outputs`, C]; `grid` is not needed, the rest is as in `GPSA`."""
        del grid
        parts = self.qkv.parts(x, 3 if self.attend.separate_projections else 1)
        heads = self.attend(parts, self.num_heads, outputs=outputs)
        return self.dropout(self.proj(heads), deterministic=key is None, rngs=key)


def attention_layer(
    architecture: Architecture, attend: kernels.Attention, *, gpsa: bool, rngs: nnx.Rngs
) -> GPSA | SelfAttention:
    """The attention of one layer, with fresh parameters."""
    a = architecture
    common = {
        "qkv_bias": a.qkv_bias,
        "drop_rate": a.drop_rate,
        "dtype": jnp.dtype(a.dtype),
        "attend": attend,
        "rngs": rngs,
    }
    if not gpsa:
        return SelfAttention(a.num_heads, a.head_dim, **common)
    return GPSA(
        a.num_heads,
        a.head_dim,
        locality_strength=a.locality_strength,
        conv_init=a.conv_init,
        use_gating=a.use_gating,
        **common,
    )


class FeedForward(nnx.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(
        self, width: int, hidden: int, *, drop_rate: float, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> None:
        """`width` channels in and out, `hidden` between; dropout after either layer."""
        init = nnx.initializers.normal(LINEAR_STD)
        self.fc1 = Linear(width, hidden, kernel_init=init, dtype=dtype, rngs=rngs)
        self.fc2 = Linear(hidden, width, kernel_init=init, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(drop_rate)

    def __call__(self, x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """[..., C] → [..., C]; `key` is the randomness of dropout, or None for none."""
        keys = (None, None) if key is None else jax.random.split(key)
        hidden = gelu(self.fc1(x))
        hidden = self.dropout(hidden, deterministic=key is None, rngs=keys[0])
        return self.dropout(self.fc2(hidden), deterministic=key is None, rngs=keys[1])


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); either branch may be skipped in training."""

    def __init__(
        self,
        architecture: Architecture,
        attend: kernels.Attention,
        *,
        gpsa: bool,
        drop_path_rate: float,
        rngs: nnx.Rngs,
    ) -> None:
        """Makes one layer, with GPSA or plain attention, skipped at `drop_path_rate`."""
        a, dtype = architecture, jnp.dtype(architecture.dtype)
        norm = {"epsilon": LAYER_NORM_EPSILON, "dtype": dtype, "rngs": rngs}
        self.norm1 = nnx.LayerNorm(a.width, **norm)
        self.attention = attention_layer(a, attend, gpsa=gpsa, rngs=rngs)
        self.norm2 = nnx.LayerNorm(a.width, **norm)
        self.mlp = FeedForward(
            a.width, a.hidden_width, drop_rate=a.drop_rate, dtype=dtype, rngs=rngs
        )
        self.drop_path_rate = drop_path_rate

    def attention_map(self, x: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """What the layer attends to, given its input: [B, N, C] → float32 [B, H, N, N]."""
        return self.attention.attention_map(self.norm1(x), grid)

    def __call__(
        self,
        x: jax.Array,
        grid: tuple[int, int],
        *,
        key: jax.Array | None = None,
        outputs: int | None = None,
    ) -> jax.Array:
        """[B, N, C] → [B, N or `outputs`, C].

        `key` is the randomness of dropout and of skipping, or None for none; `outputs` how many
        tokens, from the first, to compute the output of, or None for all.
        """
        keys = (None,) * 4 if key is None else jax.random.split(key, 4)
        branch = self.attention(self.norm1(x), grid, key=keys[0], outputs=outputs)
        x = x[:, :outputs] + drop_path(branch, self.drop_path_rate, keys[1])
        branch = self.mlp(self.norm2(x), key=keys[2])
        return x + drop_path(branch, self.drop_path_rate, keys[3])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trace:
    """Everything a forward pass went through.

    Attributes:
        embedded: the tokens that enter the first block, [B, N, C].
        inputs: the tokens that enter each block, [B, N or N + 1, C].
        outputs: the tokens that leave each block; for the last, all in `VisionTransformer.trace`.
        features: the classified token after the last norm, [B, C].
        logits: float32 [B, num_classes].
    """

    embedded: jax.Array
    inputs: list[jax.Array]
    outputs: list[jax.Array]
    features: jax.Array
    logits: jax.Array


class VisionTransformer(nnx.Module):
    """A ConViT, or with no GPSA layers a DeiT.

    Randomness is given, never kept: with a `key` the model is in training (dropout and stochastic
    depth are on), without one it is deterministic.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        attend: kernels.Attention = kernels.DEFAULT_ATTENTION,
        rngs: nnx.Rngs,
    ) -> None:
        """Makes the model with fresh parameters; `attend` computes the attention of all layers."""
        a, dtype = architecture, jnp.dtype(architecture.dtype)
        normal = nnx.initializers.normal(LINEAR_STD)
        self.architecture = architecture
        # A convolution of stride patch_size is a linear layer on each patch's pixels. It starts at
        # the fan-in scale of a convolution: at 0.02 little passes a small patch.
        fan_in = a.patch_size**2 * a.in_channels
        uniform = _uniform(fan_in**-0.5)
        self.patch_embed = Linear(
            fan_in, a.width, kernel_init=uniform, bias_init=uniform, dtype=dtype, rngs=rngs
        )
        self.cls_token = nnx.Param(normal(rngs.params(), (1, 1, a.width)))
        self.pos_embed = (
            nnx.Param(normal(rngs.params(), (1, a.position_rows, a.width)))
            if a.use_pos_embed
            else None
        )
        self.dropout = nnx.Dropout(a.drop_rate)
        rates = np.linspace(0.0, a.drop_path_rate, a.depth)
        self.blocks = nnx.List(
            Block(a, attend, gpsa=i < a.gpsa_layers, drop_path_rate=float(rates[i]), rngs=rngs)
            for i in range(a.depth)
        )
        self.norm = nnx.LayerNorm(a.width, epsilon=LAYER_NORM_EPSILON, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(
            a.width, a.num_classes, kernel_init=normal, dtype=jnp.float32, rngs=rngs
        )

    def with_attention(self, attend: kernels.Attention) -> "VisionTransformer":
        """The same model, of the same parameters, with its attention computed otherwise."""
        model = nnx.merge(*nnx.split(self))
        for block in model.blocks:
            block.attention.attend = attend
        return model

    def embed_patches(self, images: jax.Array) -> jax.Array:
        """Patches alone, without positions or class token: [B, H, W, channels] → [B, N, C]."""
        self._check(images)
        return self.patch_embed(_patches(images, self.architecture.patch_size))

    def embed(self, images: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """Patches as tokens, with absolute positions: [B, H, W, channels] → [B, N, C].

        The class token is there from the beginning in a model without GPSA layers (N + 1 tokens).
        """
        a = self.architecture
        patches = self.embed_patches(images)
        if a.class_token_position:
            patches = self._with_class_token(patches)
        if self.pos_embed is not None:
            patches = patches + self.pos_embed[...].astype(patches.dtype)
        if a.gpsa_layers == 0 and not a.class_token_position:
            patches = self._with_class_token(patches)
        return self.dropout(patches, deterministic=key is None, rngs=key)

    def classify(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Features and logits of the last block's output: [B, N, C] → [B, C], [B, num_classes]."""
        features = self.norm(x[:, 0])
        return features, self.head(features)

    def __call__(self, images: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """Classifies images.

        Args:
            images: floating, normalised, [B, H, W, channels].
            key: randomness of training, or None for inference.

        Returns:
            float32 logits, [B, num_classes].

        Raises:
            InputError: the images have another size, type or layout than the model takes.
        """
        # The head looks at one token, so the last block computes only that one's output.
        return self._run(images, key, last_outputs=1).logits

    def trace(self, images: jax.Array, *, key: jax.Array | None = None) -> Trace:
        """As `__call__`, with every layer's input and output."""
        return self._run(images, key, last_outputs=None)

    def _run(self, images: jax.Array, key: jax.Array | None, last_outputs: int | None) -> Trace:
        """The forward pass; the last block computes the outputs of so many tokens."""
        a = self.architecture

        def run(
            block: Block, x: jax.Array, key: jax.Array | None, outputs: int | None
        ) -> jax.Array:
            return block(x, a.grid, key=key, outputs=outputs)

        run = nnx.remat(run, static_argnums=3) if a.remat else run
        keys = [None] * (a.depth + 1) if key is None else jax.random.split(key, a.depth + 1)
        x = embedded = self.embed(images, key=keys[-1])
        inputs, outputs = [], []
        for i, block in enumerate(self.blocks):
            if i == a.gpsa_layers and i > 0:
                x = self._with_class_token(x)
            inputs.append(x)
            x = run(block, x, keys[i], last_outputs if i == a.depth - 1 else None)
            outputs.append(x)
        return Trace(embedded, inputs, outputs, *self.classify(x))

    def attention_maps(self, images: jax.Array) -> list[jax.Array]:
        """What each layer attends to, from its own input: float32 [B, H, N, N] for each layer."""
        inputs = self.trace(images).inputs
        return [
            block.attention_map(x, self.architecture.grid)
            for block, x in zip(self.blocks, inputs, strict=True)
        ]

    def _with_class_token(self, x: jax.Array) -> jax.Array:
        token = jnp.broadcast_to(self.cls_token[...].astype(x.dtype), (x.shape[0], 1, x.shape[2]))
        return jnp.concatenate([token, x], axis=1)

    def _check(self, images: jax.Array) -> None:
        a = self.architecture
        expected = (*a.image_size, a.in_channels)
        wanted = f"expected float images [batch, {', '.join(map(str, expected))}]"
        if images.ndim != 4:
            raise InputError(f"images have shape {images.shape}: {wanted}")
        if images.shape[1:] != expected:
            if images.shape[1:] == (a.in_channels, *a.image_size):
                raise InputError(
                    f"images have shape {images.shape}, channels first (NCHW): {wanted}, channels "
                    "last; transpose them by (0, 2, 3, 1)"
                )
            raise InputError(f"images have shape {images.shape}: {wanted}")
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise InputError(
                f"images are {images.dtype}: {wanted}, scaled to [0, 1] and normalised"
            )


def _patches(images: jax.Array, size: int) -> jax.Array:
    """[B, H, W, channels] → [B, N, size · size · channels], patches in row-major order."""
    b, h, w, c = images.shape
    patches = images.reshape(b, h // size, size, w // size, size, c).transpose(0, 1, 3, 2, 4, 5)
    return patches.reshape(b, (h // size) * (w // size), size * size * c)


def _uniform(bound: float) -> nnx.Initializer:
    """U(-bound, bound)."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
