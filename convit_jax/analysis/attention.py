"""Attention of one patch to all others, in every layer and head."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convit_jax.analysis.locality import gpsa_attention, images_at_once
from convit_jax.errors import InputError
from convit_jax.models import VisionTransformer
from convit_jax.models.architecture import Architecture
from convit_jax.models.gpsa import convolutional_positions, relative_positions


def central_patch(grid: tuple[int, int]) -> tuple[int, int]:
    """Return (row, column) of the central patch, the query of the paper's figures (Fig. 7)."""
    return grid[0] // 2, grid[1] // 2


def check_query(query: tuple[int, int], grid: tuple[int, int]) -> None:
    """Raise InputError unless `query`, (row, column), is a patch of the grid."""
    if not all(0 <= index < size for index, size in zip(query, grid, strict=True)):
        raise InputError(
            f"query {query[0]},{query[1]} is outside the grid of {grid[0]} x {grid[1]} patches: "
            f"expected a row from 0 to {grid[0] - 1} and a column from 0 to {grid[1] - 1}"
        )


def _flat_index(query: tuple[int, int], grid: tuple[int, int]) -> int:
    """Return the row-major index of a patch; raise InputError outside the grid."""
    check_query(query, grid)
    return query[0] * grid[1] + query[1]


def check_layers(layers: Sequence[int], depth: int) -> None:
    """Raise InputError unless all layer numbers, which count from 1, exist."""
    for layer in layers:
        if not 1 <= layer <= depth:
            raise InputError(f"layer {layer}: the model's layers are 1 to {depth}")


def default_layers(architecture: Architecture, count: int = 4) -> list[int]:
    """Return evenly spaced GPSA layers, or layers of a model without any: 1, 4, 7, 10."""
    last = architecture.gpsa_layers or architecture.depth
    return sorted({round(layer) for layer in np.linspace(1, last, count)})


def attention_from(
    model: VisionTransformer, images: np.ndarray | jax.Array, query: tuple[int, int]
) -> np.ndarray:
    """Return the attention of the patch `query` in each layer, on the layer's input (paper Fig. 7).

    Args:
        model: any vision transformer.
        images: floating, normalised, [B, height, width, channels].
        query: (row, column) of a patch, from 0.

    Returns:
        float32 [L, B, H, rows, columns]. In a layer with the class token the weights sum to less
        than one: the remainder is the attention to the class token.

    Raises:
        InputError: a query outside the grid, or images of a shape that the model does not take.
    """
    a = model.architecture
    index = _flat_index(query, a.grid)
    if not len(images):
        return np.zeros((a.depth, 0, a.num_heads, *a.grid), np.float32)
    graph, state = nnx.split(model)
    return np.asarray(_attention_from(graph, state, jnp.asarray(images), index))


@functools.partial(jax.jit, static_argnums=(0, 3))
def _attention_from(
    graph: nnx.GraphDef, state: nnx.State, images: jax.Array, index: int
) -> jax.Array:
    model = nnx.merge(graph, state)
    grid = model.architecture.grid
    num_patches = grid[0] * grid[1]
    # The patches are the last tokens: a class token comes first.
    rows = [
        a[:, :, -num_patches:, -num_patches:][:, :, index] for a in model.attention_maps(images)
    ]
    return jnp.stack(rows).reshape(len(rows), len(images), -1, *grid)


def mean_attention_from(
    model: VisionTransformer,
    images: np.ndarray,
    query: tuple[int, int],
    *,
    transform: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Return the attention of the patch `query` averaged over images (paper Fig. 15).

    Args:
        model: any vision transformer.
        images: [B, height, width, channels], at least one.
        query: (row, column) of a patch, from 0.
        transform: makes images floating and normalised.

    Returns:
        float32 [L, H, rows, columns].

    Raises:
        InputError: a query outside the grid, or images of a shape that the model does not take.
    """
    size = images_at_once(model.architecture)
    batches = [images[start : start + size] for start in range(0, len(images), size)]
    sums = [attention_from(model, transform(batch), query).sum(axis=1) for batch in batches]
    return np.sum(sums, axis=0) / np.float32(len(images))


def positional_attention_from(model: VisionTransformer, query: tuple[int, int]) -> np.ndarray:
    """Return the positional attention of the patch `query`: float32 [G, H, rows, columns].

    Raises:
        InputError: a query outside the grid.
    """
    a = model.architecture
    index = _flat_index(query, a.grid)
    maps = [layer.positional_attention(a.grid)[:, index] for layer in gpsa_attention(model)]
    return np.asarray(maps).reshape(-1, a.num_heads, *a.grid)


def initial_attention_from(architecture: Architecture, query: tuple[int, int]) -> np.ndarray | None:
    """Return the positional attention of `query` at the convolutional initialisation.

    Returns:
        [H, rows, columns], or None for an architecture without such an initialisation.

    Raises:
        InputError: a query outside the grid.
    """
    a = architecture
    index = _flat_index(query, a.grid)
    if not (a.gpsa_layers and a.conv_init):
        return None
    v_pos = convolutional_positions(a.num_heads, a.locality_strength)
    scores = (relative_positions(a.grid)[index] @ v_pos).T
    return np.asarray(jax.nn.softmax(scores, axis=-1)).reshape(a.num_heads, *a.grid)
