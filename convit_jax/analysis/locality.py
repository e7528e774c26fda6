"""Range of attention: gates, non-locality (paper Eq. 8), and the geometry of each head.

All measurements are functions of a model, or of a model and images. Distances are in patches.
L layers, of which the first G are GPSA, H heads, N patches. Layers count from 0 here, from 1 in
figures.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convit_jax.errors import InputError
from convit_jax.models import VisionTransformer
from convit_jax.models.architecture import Architecture
from convit_jax.models.gpsa import GPSA, PSA, relative_positions

# The input that each layer is measured on: its own, or, as in the released code, the patch
# embeddings alone (no positions, norm or earlier layers), which are the same for every layer.
VARIANTS = ("propagated", "released")

# Upper bounds of a measured batch: float32 numbers in a layer's attention maps (256 MB), images.
_MAX_MAP_SIZE = 2**26
_MAX_IMAGES = 32


def gpsa_attention(model: VisionTransformer) -> list[PSA]:
    """Return the attention modules of the model's GPSA layers (or vanilla PSA), in order."""
    return [b.attention for b in model.blocks if isinstance(b.attention, PSA)]


def patch_distances(grid: tuple[int, int]) -> jax.Array:
    """Return |δ_ij| between patches i and j: float32 [N, N], row-major order (paper Eq. 8)."""
    return jnp.sqrt(relative_positions(grid)[..., 2])


def gates(model: VisionTransformer) -> jax.Array:
    """Return σ(λ), each head's weight of positional attention: float32 [G, H].

    Vanilla positional attention has no gates: [0, H].
    """
    gates = [layer.gate() for layer in gpsa_attention(model) if isinstance(layer, GPSA)]
    return jnp.array(gates).reshape(-1, model.architecture.num_heads)


def positional_nonlocality(model: VisionTransformer) -> jax.Array:
    """Return the non-locality of each head's positional attention: float32 [G, H] (paper Eq. 8)."""
    a = model.architecture
    distances = patch_distances(a.grid)
    maps = (layer.positional_attention(a.grid) for layer in gpsa_attention(model))
    means = [jnp.einsum("hij,ij->h", m, distances) / len(distances) for m in maps]
    return jnp.array(means).reshape(-1, a.num_heads)


def positional_vectors(model: VisionTransformer) -> np.ndarray:
    """Return v_pos of each head, in the channel order of r: float32 [G, 3, H] (paper Eq. 5)."""
    kernels = [np.asarray(layer.pos_proj.kernel[...]) for layer in gpsa_attention(model)]
    shape = (len(kernels), 3, model.architecture.num_heads)
    return np.reshape(kernels, shape).astype(np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class HeadGeometry:
    """Gaussian of each head's positional attention, from its v_pos (paper Eq. 5); all float32.

    v_pos · r = -α |d - Δ|² + constant, so the positional attention is a Gaussian around Δ. If
    training has made α negative there is no centre: centre and span are NaN.

    Attributes:
        centre: Δ, [G, H, 2]: (x, y) from the query, in patches.
        strength: α, [G, H], the effective locality strength, in 1/patches².
        span: √(1 / 2α), [G, H]: the Gaussian's standard deviation along an axis, in patches.
    """

    centre: np.ndarray
    strength: np.ndarray
    span: np.ndarray


def head_geometry(model: VisionTransformer) -> HeadGeometry:
    """Return centre, strength and span of each head's positional attention."""
    v_pos = positional_vectors(model)
    strength = -v_pos[:, 2]
    positive = np.where(strength > 0, strength, np.nan)
    centre = np.stack([v_pos[:, 0], v_pos[:, 1]], axis=-1) / (2 * positive[..., None])
    return HeadGeometry(centre, strength, np.sqrt(1 / (2 * positive)))


def images_at_once(architecture: Architecture) -> int:
    """Return the number of images whose attention maps of one layer fit in 256 MB, at most 32."""
    a = architecture
    tokens = a.grid[0] * a.grid[1] + 1 + a.distillation_token
    return max(1, min(_MAX_IMAGES, _MAX_MAP_SIZE // (a.num_heads * tokens**2)))


def sum_locality(
    model: VisionTransformer,
    images: jax.Array,
    mask: jax.Array | None = None,
    *,
    variant: str = "propagated",
) -> dict[str, jax.Array]:
    """Return the sums over a batch of images that `Locality` averages; can be jitted.

    Args:
        model: any vision transformer.
        images: floating, normalised, [B, height, width, channels].
        mask: float32 [B], 0 for images to ignore (padding); None to count all.
        variant: one of `VARIANTS`.

    Returns:
        `nonlocality`, `entropy` and `to_class_token`, float32 [L, H] each, and the scalar
        `examples`, the number of images counted.

    Raises:
        InputError: an unknown variant, or images of a shape that the model does not take.
    """
    if variant not in VARIANTS:
        raise InputError(f"variant '{variant}': expected {' or '.join(VARIANTS)}")
    a = model.architecture
    mask = jnp.ones(len(images)) if mask is None else mask
    distances = patch_distances(a.grid)
    if variant == "released":
        embedded = model.embed_patches(images)
        maps = (block.attention.attention_map(embedded, a.grid) for block in model.blocks)
    else:
        inputs = model.trace(images).inputs
        maps = (b.attention_map(x, a.grid) for b, x in zip(model.blocks, inputs, strict=True))
    layers = [_sum_over_images(attention, distances, mask) for attention in maps]
    sums = jax.tree.map(lambda *values: jnp.stack(values), *layers)
    return sums | {"examples": mask.sum()}


def _sum_over_images(
    attention: jax.Array, distances: jax.Array, mask: jax.Array
) -> dict[str, jax.Array]:
    """Measure one layer's attention map [B, H, T, T] and sum over images: [H] each."""
    class_tokens = attention.shape[-1] - len(distances)
    rows = attention[:, :, class_tokens:]  # queries are patches only
    patch_to_patch = rows[..., class_tokens:]
    per_image = {
        # Eq. 8: the mean over queries of Σ_j A_ij |δ_ij|. The class token has no position, so
        # attention to it is left out of the sum.
        "nonlocality": jnp.einsum("bhij,ij->bh", patch_to_patch, distances) / len(distances),
        "entropy": jax.scipy.special.entr(rows).sum(axis=-1).mean(axis=-1),
        "to_class_token": rows[..., :class_tokens].sum(axis=-1).mean(axis=-1),
    }
    return {name: jnp.einsum("bh,b->h", values, mask) for name, values in per_image.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class Locality:
    """Range of each head's attention, averaged over images; float32 [L, H] each.

    Attributes:
        nonlocality: mean distance from query to key, weighted by attention (paper Eq. 8), in
            patches; between patches only.
        entropy: entropy of a query's attention over all keys, in nats: 0 for a single key, log N
            for uniform attention.
        to_class_token: fraction of the patches' attention that goes to the class token, and to the
            distillation token.
        examples: number of images averaged over.
    """

    nonlocality: np.ndarray
    entropy: np.ndarray
    to_class_token: np.ndarray
    examples: int

    @classmethod
    def from_sums(cls, sums: dict[str, Any]) -> "Locality":
        """Return the means of the sums from `sum_locality`.

        Raises:
            InputError: no image was counted.
        """
        if not sums["examples"]:
            raise InputError("there is no image to measure attention on")
        names = ("nonlocality", "entropy", "to_class_token")
        means = {name: np.asarray(sums[name] / sums["examples"]) for name in names}
        return cls(**means, examples=int(sums["examples"]))


def measure_locality(
    model: VisionTransformer,
    images: np.ndarray | jax.Array,
    *,
    variant: str = "propagated",
    transform: Callable[[Any], Any] | None = None,
) -> Locality:
    """Measure the range of each head's attention on any number of images, in bounded memory.

    Args:
        model: any vision transformer.
        images: [B, height, width, channels]; floating and normalised, or made so by `transform`.
        variant: `propagated`, each layer on its own input, as the paper defines it; or
            `released`, every layer on the patch embeddings, as the released code computes it.
        transform: applied to each batch of images before the model.

    Raises:
        InputError: no images, images of a shape that the model does not take, or an unknown
            variant.
    """
    graph, state = nnx.split(model)
    size = max(1, min(images_at_once(model.architecture), len(images)))
    step = jax.jit(
        lambda state, images, mask: sum_locality(
            nnx.merge(graph, state), images, mask, variant=variant
        )
    )
    totals: dict[str, Any] = {"examples": 0}
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        batch, mask = _pad(jnp.asarray(transform(batch) if transform else batch), size)
        sums = step(state, batch, mask)
        totals = sums if len(totals) == 1 else jax.tree.map(jnp.add, totals, sums)
    return Locality.from_sums(totals)


def _pad(batch: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Pad a batch to `size` images, to compile once for all batches; return it and its mask."""
    missing = size - len(batch)
    padding = [(0, missing)] + [(0, 0)] * (batch.ndim - 1)
    return jnp.pad(batch, padding), jnp.pad(jnp.ones(len(batch)), (0, missing))
