"""How far a model looks: gates, non-locality (paper Eq. 8), and the geometry of each head.

Everything is a function of a model, or of a model and images. Distances are in patches. L layers,
of which the first G are GPSA, H heads, N patches; layers count from 0 here and from 1 in figures.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convit_jax.errors import InputError
from convit_jax.models import VisionTransformer
from convit_jax.models.architecture import Architecture

# What a layer is measured on: its own input, or, as the released code does, the patches'
# embeddings alone, without positions, norm or the layers before, the same for every layer.
VARIANTS = ("propagated", "released")

# Attention maps of a layer that are held at once, in float32 numbers: 256 MB.
_MAPS_HELD = 2**26
_MOST_IMAGES = 32


def patch_distances(grid: tuple[int, int]) -> jax.Array:
    """|δ_ij| between patches i and j: float32 [N, N], patches in row-major order (paper Eq. 8)."""
    y, x = jnp.divmod(jnp.arange(grid[0] * grid[1]), grid[1])
    return jnp.hypot(x[:, None] - x[None, :], y[:, None] - y[None, :]).astype(jnp.float32)


def gates(model: VisionTransformer) -> jax.Array:
    """σ(λ), the share of attention that each head gives to position: float32 [G, H]."""
    layers = model.blocks[: model.architecture.gpsa_layers]
    if not layers:
        return jnp.zeros((0, model.architecture.num_heads))
    return jnp.stack([block.attention.gate() for block in layers])


def positional_nonlocality(model: VisionTransformer) -> jax.Array:
    """Non-locality of the positional half of each head alone: float32 [G, H] (paper Eq. 8)."""
    a = model.architecture
    distances = patch_distances(a.grid)
    maps = [b.attention.positional_attention(a.grid) for b in model.blocks[: a.gpsa_layers]]
    if not maps:
        return jnp.zeros((0, a.num_heads))
    return jnp.stack([jnp.einsum("hij,ij->h", m, distances) / len(distances) for m in maps])


@dataclasses.dataclass(frozen=True, eq=False)
class HeadGeometry:
    """Where each head looks by position, from its v_pos (paper Eq. 5); all float32.

    v_pos · r = -α |d - Δ|² + constant, so the positional attention is a Gaussian around Δ. Where
    training has made α negative there is no such centre, and centre and span are NaN.

    Attributes:
        centre: Δ, [G, H, 2]: (x, y) from the query, in patches.
        strength: α, [G, H], the effective locality strength, in 1/patches².
        span: √(1 / 2α), [G, H]: the Gaussian's standard deviation along an axis, in patches.
    """

    centre: np.ndarray
    strength: np.ndarray
    span: np.ndarray


def head_geometry(model: VisionTransformer) -> HeadGeometry:
    """Centre, strength and span of the positional attention of each head of each GPSA layer."""
    a = model.architecture
    kernels = [np.asarray(b.attention.pos_proj.kernel[...]) for b in model.blocks[: a.gpsa_layers]]
    v_pos = np.stack(kernels) if kernels else np.zeros((0, 3, a.num_heads), np.float32)
    strength = -v_pos[:, 2]
    positive = np.where(strength > 0, strength, np.nan)
    centre = np.stack([v_pos[:, 0], v_pos[:, 1]], axis=-1) / (2 * positive[..., None])
    return HeadGeometry(centre, strength, np.sqrt(1 / (2 * positive)))


def images_at_once(architecture: Architecture) -> int:
    """How many images to measure together, so that a layer's attention maps fit in 256 MB."""
    tokens = architecture.grid[0] * architecture.grid[1] + 1
    return max(1, min(_MOST_IMAGES, _MAPS_HELD // (architecture.num_heads * tokens**2)))


def sum_locality(
    model: VisionTransformer,
    images: jax.Array,
    mask: jax.Array | None = None,
    *,
    variant: str = "propagated",
) -> dict[str, jax.Array]:
    """What `Locality` is the mean of, summed over a batch of images; for `jax.jit`.

    Args:
        model: any of the named ones, or another.
        images: floating, normalised, [B, height, width, channels].
        mask: float32 [B], 0 for images that do not count; None: all do.
        variant: one of `VARIANTS`.

    Returns:
        `nonlocality`, `entropy` and `to_class_token`, float32 [L, H], and `examples`, a number.

    Raises:
        InputError: an unknown variant, or images that the model does not take.
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
    layers = [_of_map(attention, distances, mask) for attention in maps]
    sums = jax.tree.map(lambda *values: jnp.stack(values), *layers)
    return sums | {"examples": mask.sum()}


def _of_map(attention: jax.Array, distances: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Sums over images of what a layer's map [B, H, T, T] tells of each head: [H] each."""
    class_tokens = attention.shape[-1] - len(distances)
    rows = attention[:, :, class_tokens:]  # the patches' queries; the class token's does not count
    among_patches = rows[..., class_tokens:]
    per_image = {
        # Eq. 8: the mean over queries of Σ_j A_ij |δ_ij|. Attention to the class token, which lies
        # nowhere, adds nothing.
        "nonlocality": jnp.einsum("bhij,ij->bh", among_patches, distances) / len(distances),
        "entropy": jax.scipy.special.entr(rows).sum(axis=-1).mean(axis=-1),
        "to_class_token": rows[..., :class_tokens].sum(axis=-1).mean(axis=-1),
    }
    return {name: jnp.einsum("bh,b->h", values, mask) for name, values in per_image.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class Locality:
    """How far each head looks, the mean over images; float32 [L, H] each.

    Attributes:
        nonlocality: mean distance from query to key, weighted by attention (paper Eq. 8), in
            patches; between patches only.
        entropy: of a query's attention over all keys, in nats: 0 for one key, log N for all alike.
        to_class_token: share of the patches' attention that goes to the class token.
        examples: images it is the mean of.
    """

    nonlocality: np.ndarray
    entropy: np.ndarray
    to_class_token: np.ndarray
    examples: int

    @classmethod
    def from_sums(cls, sums: dict[str, Any]) -> "Locality":
        """The means of what `sum_locality` gives.

        Raises:
            InputError: no image counted.
        """
        if not sums["examples"]:
            raise InputError("there is no image to measure attention on")
        names = ("nonlocality", "entropy", "to_class_token")
        mean = {name: np.asarray(sums[name] / sums["examples"]) for name in names}
        return cls(**mean, examples=int(sums["examples"]))


def measure_locality(
    model: VisionTransformer, images: np.ndarray | jax.Array, *, variant: str = "propagated"
) -> Locality:
    """How far each head of a model looks, on any number of images, in bounded memory.

    Args:
        model: any of the named ones, or another.
        images: floating, normalised, [B, height, width, channels].
        variant: `propagated`, each layer on its own input, as the paper defines it; or
            `released`, as the released code computes it: every layer on the patches' embeddings.

    Raises:
        InputError: no images, or such as the model does not take; an unknown variant.
    """
    graph, state = nnx.split(model)
    size = images_at_once(model.architecture)
    step = jax.jit(
        lambda state, images, mask: sum_locality(
            nnx.merge(graph, state), images, mask, variant=variant
        )
    )
    totals: dict[str, Any] = {"examples": 0}
    for pixels, mask in _padded_batches(images, min(size, max(1, len(images)))):
        sums = step(state, pixels, mask)
        totals = sums if len(totals) == 1 else jax.tree.map(jnp.add, totals, sums)
    return Locality.from_sums(totals)


def _padded_batches(images: Any, size: int) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Batches of one size, so that one program serves them, with masks."""
    for start in range(0, len(images), size):
        some = jnp.asarray(images[start : start + size])
        missing = size - len(some)
        padding = [(0, missing)] + [(0, 0)] * (some.ndim - 1)
        yield jnp.pad(some, padding), jnp.pad(jnp.ones(len(some)), (0, missing))
