"""The vision transformer: the complete ConViT and DeiT models."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convit_jax import kernels
from convit_jax.errors import InputError
from convit_jax.models.architecture import RIVALS, Architecture
from convit_jax.models.block import LAYER_NORM_EPSILON, Block
from convit_jax.models.eager import compiled_if_eager
from convit_jax.models.gpsa import LINEAR_STD
from convit_jax.models.initialization import sinusoidal_positions
from convit_jax.models.layers import PatchEmbedding

# The names of what classifies: `head` the class token, `head_dist` the distillation token.
HEADS = ("head", "head_dist")


def is_of_head(name: str) -> bool:
    """Whether a parameter, or PyTorch's tensor of the same name, belongs to a head."""
    return name.partition(".")[0] in HEADS


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trace:
    """The intermediate values of a forward pass.

    Attributes:
        embedded: the tokens before the first block, [B, N, C].
        inputs: the input tokens of each block, [B, N, C]; with the class tokens N + 1 or N + 2.
        outputs: the output tokens of each block; all of the last only in `VisionTransformer.trace`.
        features: the classified token after the last norm, [B, C]; with a distillation token, the
            mean of both.
        logits: float32 [B, num_classes]; the features, float32 [B, C], if the model has no head.
    """

    embedded: jax.Array
    inputs: list[jax.Array]
    outputs: list[jax.Array]
    features: jax.Array
    logits: jax.Array


class VisionTransformer(nnx.Module):
    """A ConViT, or without GPSA layers a DeiT.

    The model holds no random state: with a `key` it is in training mode (dropout and stochastic
    depth are on), without one it is deterministic. Called eagerly, as in a notebook, it is compiled
    once for each architecture and shape and type of the images.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        attend: kernels.Attention = kernels.DEFAULT_ATTENTION,
        patch_form: str = "auto",
        rngs: nnx.Rngs,
    ) -> None:
        """Initialise the model's parameters.

        Args:
            architecture: sizes and choices.
            attend: computes the attention of all layers.
            patch_form: one of `layers.PATCH_FORMS`, how patches are embedded.
            rngs: random keys.
        """
        a, dtype = architecture, jnp.dtype(architecture.dtype)
        normal = nnx.initializers.normal(LINEAR_STD)
        self.architecture = architecture
        # Initialised at the fan-in scale of a convolution: at 0.02 the output of a small patch
        # would be too small.
        uniform = _uniform((a.patch_size**2 * a.in_channels) ** -0.5)
        self.patch_embed = PatchEmbedding(
            a.patch_size, a.in_channels, a.width, form=patch_form, init=uniform, dtype=dtype,
            rngs=rngs,
        )  # fmt: skip
        self.cls_token = nnx.Param(normal(rngs.params(), (1, 1, a.width)))
        self.dist_token = (
            nnx.Param(normal(rngs.params(), (1, 1, a.width))) if a.distillation_token else None
        )
        self.pos_embed = (
            nnx.Param(normal(rngs.params(), (1, a.position_rows, a.width)))
            if a.use_pos_embed
            else None
        )
        if self.pos_embed is not None and a.init in RIVALS:
            class_rows = a.position_rows - a.grid[0] * a.grid[1]
            positions = sinusoidal_positions(a.grid, a.width, class_rows)
            self.pos_embed[...] = jnp.asarray(positions[None])
        self.dropout = nnx.Dropout(a.drop_rate)
        rates = np.linspace(0.0, a.drop_path_rate, a.depth)
        self.blocks = nnx.List(
            Block(a, attend, gpsa=i < a.gpsa_layers, drop_path_rate=float(rates[i]), rngs=rngs)
            for i in range(a.depth)
        )
        self.norm = nnx.LayerNorm(a.width, epsilon=LAYER_NORM_EPSILON, dtype=dtype, rngs=rngs)
        head = functools.partial(nnx.Linear, kernel_init=normal, dtype=jnp.float32, rngs=rngs)
        self.head = head(a.width, a.num_classes) if a.num_classes else None
        has_second = a.num_classes and a.distillation_token
        self.head_dist = head(a.width, a.num_classes) if has_second else None

    def with_attention(self, attend: kernels.Attention) -> "VisionTransformer":
        """Return the same model with the same parameters, its attention computed by `attend`."""
        model = nnx.merge(*nnx.split(self))
        for block in model.blocks:
            block.attention.attend = attend
        return model

    def embed_patches(self, images: jax.Array) -> jax.Array:
        """Embed patches, without positions or class tokens: [B, H, W, channels] → [B, N, C]."""
        self._check(images)
        return self.patch_embed(images)

    def embed(self, images: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """Embed patches with absolute positions: [B, H, W, channels] → [B, N, C].

        Without GPSA layers the class token is included (N + 1 tokens), and the distillation token.
        """
        a = self.architecture
        patches = self.embed_patches(images)
        if a.class_token_position:
            patches = self._with_class_tokens(patches)
        if self.pos_embed is not None:
            patches = patches + self.pos_embed[...].astype(patches.dtype)
        if a.gpsa_layers == 0 and not a.class_token_position:
            patches = self._with_class_tokens(patches)
        return self.dropout(patches, deterministic=key is None, rngs=key)

    def classify(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Features [B, C] and logits [B, num_classes] of the last block's output [B, N, C].

        With a distillation token, both are the mean over the two tokens.
        """
        features, logits = self._classify_tokens(x)
        return _mean(features), _mean(logits)

    def _classify_tokens(self, x: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        """Features and logits of each token that has a head."""
        heads = [self.head, self.head_dist][: self._num_classified]
        features = [self.norm(x[:, i]) for i in range(len(heads))]
        logits = [
            f.astype(jnp.float32) if head is None else head(f)
            for f, head in zip(features, heads, strict=True)
        ]
        return features, logits

    @property
    def _num_classified(self) -> int:
        """The number of tokens that have a head, which are the first."""
        return max(self.architecture.num_class_tokens, 1)

    @compiled_if_eager
    def __call__(self, images: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """Classify images.

        Args:
            images: floating-point, normalised, [B, H, W, channels].
            key: random key for training, or None for inference.

        Returns:
            float32 logits, [B, num_classes]; the features, [B, C], if the model has no head.

        Raises:
            InputError: the size, type or layout of the images is not the model's.
        """
        # The last block computes only the outputs of the tokens that the heads read.
        return self._forward(images, key, num_last_outputs=self._num_classified).logits

    @compiled_if_eager
    def separate_logits(
        self, images: jax.Array, *, key: jax.Array | None = None
    ) -> tuple[jax.Array, ...]:
        """As `__call__`, without the mean: the logits of each head.

        Returns:
            (logits of the class token, logits of the distillation token), float32
            [B, num_classes] each; only the former if the model has no distillation token.
        """
        x = self._forward(images, key, num_last_outputs=self._num_classified).outputs[-1]
        return tuple(self._classify_tokens(x)[1])

    @compiled_if_eager
    def trace(self, images: jax.Array, *, key: jax.Array | None = None) -> Trace:
        """As `__call__`, returning the input and output of every layer."""
        return self._forward(images, key, num_last_outputs=None)

    def _forward(
        self, images: jax.Array, key: jax.Array | None, num_last_outputs: int | None
    ) -> Trace:
        """Run the model; the last block computes only its first `num_last_outputs` tokens."""
        a = self.architecture

        def run_block(
            block: Block, x: jax.Array, key: jax.Array | None, num_outputs: int | None
        ) -> jax.Array:
            return block(x, a.grid, key=key, num_outputs=num_outputs)

        if a.remat:
            run_block = nnx.remat(run_block, static_argnums=3)
        keys = [None] * (a.depth + 1) if key is None else jax.random.split(key, a.depth + 1)
        x = embedded = self.embed(images, key=keys[-1])
        inputs, outputs = [], []
        for i, block in enumerate(self.blocks):
            if i == a.gpsa_layers and i > 0:
                x = self._with_class_tokens(x)
            inputs.append(x)
            x = run_block(block, x, keys[i], num_last_outputs if i == a.depth - 1 else None)
            outputs.append(x)
        return Trace(embedded, inputs, outputs, *self.classify(x))

    @compiled_if_eager
    def features(self, images: jax.Array) -> jax.Array:
        """Return what the head classifies: the class token after the last norm, float32 [B, C].

        With a distillation token, the mean of both tokens.
        """
        trace = self._forward(images, None, num_last_outputs=self._num_classified)
        return trace.features.astype(jnp.float32)

    def feature_maps(
        self, images: jax.Array, layers: Sequence[int] | None = None, *, norm: bool = False
    ) -> list[jax.Array]:
        """Return the patches' tokens after some layers as images.

        Args:
            images: as for `__call__`.
            layers: numbers of the layers, the first is 0, the last also -1; None for all.
            norm: whether to apply the model's last norm to the tokens of every layer, not only to
                what is classified.

        Returns:
            For each of `layers`, [B, rows, columns, C], without the class tokens.

        Raises:
            InputError: there is no such layer, or the images are not the model's.
        """
        a = self.architecture
        layers = range(a.depth) if layers is None else layers
        for layer in layers:
            if not -a.depth <= layer < a.depth:
                raise InputError(
                    f"layers: {layer} is none of the model's {a.depth} layers, 0 to {a.depth - 1}"
                )
        rows, columns = a.grid
        outputs = self.trace(images).outputs
        patches = [outputs[layer][:, -rows * columns :] for layer in layers]
        normed = map(self.norm, patches) if norm else patches
        return [x.reshape(len(x), rows, columns, a.width) for x in normed]

    @compiled_if_eager
    def attention_maps(self, images: jax.Array) -> list[jax.Array]:
        """Return the attention map of each layer: a float32 [B, H, N, N] per layer."""
        inputs, grid = self.trace(images).inputs, self.architecture.grid
        return [b.attention_map(x, grid) for b, x in zip(self.blocks, inputs, strict=True)]

    @compiled_if_eager
    def attention_rollout(self, images: jax.Array) -> jax.Array:
        """Return how much of what is classified comes from each patch (Abnar & Zuidema 2020).

        A layer passes on half of each token (the residual connection) and half of what its
        attention, averaged over the heads, gathers; the layers' matrices are multiplied.

        Returns:
            float32 [B, rows, columns]. They sum to one with the class token's share of itself. With
            a distillation token, the mean of both tokens' rollouts.
        """
        rows, columns = self.architecture.grid
        rollout = jnp.eye(rows * columns)
        for attention in self.attention_maps(images):
            tokens = attention.shape[-1]
            new = tokens - rollout.shape[-1]
            if new:  # from here on with the class tokens, which are the first
                padding = [(0, 0)] * (rollout.ndim - 2) + [(new, 0)] * 2
                rollout = jnp.pad(rollout, padding).at[..., :new, :new].set(jnp.eye(new))
            rollout = 0.5 * (attention.mean(axis=1) + jnp.eye(tokens)) @ rollout
        classified = rollout[:, : self._num_classified, -rows * columns :].mean(axis=1)
        return classified.reshape(-1, rows, columns)

    def _with_class_tokens(self, x: jax.Array) -> jax.Array:
        tokens = [token for token in (self.cls_token, self.dist_token) if token is not None]
        shape = (x.shape[0], 1, x.shape[2])
        expanded = [jnp.broadcast_to(token[...].astype(x.dtype), shape) for token in tokens]
        return jnp.concatenate([*expanded, x], axis=1)

    def _check(self, images: jax.Array) -> None:
        a = self.architecture
        shape = (*a.image_size, a.in_channels)
        expected = f"expected float images [batch, {', '.join(map(str, shape))}]"
        if images.ndim == 4 and images.shape[1:] == (a.in_channels, *a.image_size) != shape:
            raise InputError(
                f"images have shape {images.shape}, channels first (NCHW): {expected}, channels "
                "last; transpose them by (0, 2, 3, 1)"
            )
        if images.ndim != 4 or images.shape[1:] != shape:
            raise InputError(f"images have shape {images.shape}: {expected}")
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise InputError(
                f"images are {images.dtype}: {expected}, scaled to [0, 1] and normalised"
            )


def _mean(arrays: list[jax.Array]) -> jax.Array:
    """The mean of arrays of one shape."""
    return functools.reduce(jnp.add, arrays) / len(arrays) if len(arrays) > 1 else arrays[0]


def _uniform(bound: float) -> nnx.Initializer:
    """U(-bound, bound)."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
