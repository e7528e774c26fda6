"""What one patch attends to, in every layer and head."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convit_jax.errors import InputError
from convit_jax.models import VisionTransformer
from convit_jax.models.architecture import Architecture
from convit_jax.models.gpsa import convolutional_positions, relative_positions


def centre_of(grid: tuple[int, int]) -> tuple[int, int]:
    """(row, column) of the patch in the middle, which the paper's figures ask (Fig. 7)."""
    return grid[0] // 2, grid[1] // 2


def check_query(query: tuple[int, int], grid: tuple[int, int]) -> None:
    """Raises InputError unless a (row, column) is a patch of the grid."""
    if not all(0 <= place < size for place, size in zip(query, grid, strict=True)):
        raise InputError(
            f"query {query[0]},{query[1]} is outside the grid of {grid[0]} x {grid[1]} patches: "
            f"expected a row from 0 to {grid[0] - 1} and a column from 0 to {grid[1] - 1}"
        )


def _index_of(query: tuple[int, int], grid: tuple[int, int]) -> int:
    """The patch's place in row-major order; raises InputError outside the grid."""
    check_query(query, grid)
    return query[0] * grid[1] + query[1]


def check_layers(layers: Sequence[int], depth: int) -> None:
    """Raises InputError unless all are layers, which count from 1."""
    for layer in layers:
        if not 1 <= layer <= depth:
            raise InputError(f"layer {layer}: the model's layers are 1 to {depth}")


def some_layers(architecture: Architecture, count: int = 4) -> list[int]:
    """Layers to show, spread over the GPSA layers, or over all where none is: 1, 4, 7, 10."""
    last = architecture.gpsa_layers or architecture.depth
    return sorted({round(layer) for layer in np.linspace(1, last, count)})


def attention_from(
    model: VisionTransformer, images: np.ndarray | jax.Array, query: tuple[int, int]
) -> np.ndarray:
    """What the patch `query` attends to in each layer, on the layer's own input (paper Fig. 7).

    Args:
        model: any of the named ones, or another.
        images: floating, normalised, [B, height, width, channels].
        query: (row, column) of a patch, from 0.

    Returns:
        float32 [L, B, H, rows, columns]: shares of attention. Those of a layer with the class token
        add up to less than one: what is missing goes to the class token.

    Raises:
        InputError: a query outside the grid, or images that the model does not take.
    """
    a = model.architecture
    index = _index_of(query, a.grid)
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
    patches = grid[0] * grid[1]
    # Patches are the last tokens: the class token, where there is one, comes first.
    rows = [a[:, :, -patches:, -patches:][:, :, index] for a in model.attention_maps(images)]
    return jnp.stack(rows).reshape(len(rows), len(images), -1, *grid)


def positional_attention_from(model: VisionTransformer, query: tuple[int, int]) -> np.ndarray:
    """What the patch `query` attends to by position alone: float32 [G, H, rows, columns].

    Raises:
        InputError: a query outside the grid.
    """
    a = model.architecture
    index = _index_of(query, a.grid)
    maps = [
        b.attention.positional_attention(a.grid)[:, index] for b in model.blocks[: a.gpsa_layers]
    ]
    return np.asarray(maps).reshape(-1, a.num_heads, *a.grid)


def initial_attention_from(architecture: Architecture, query: tuple[int, int]) -> np.ndarray | None:
    """As `positional_attention_from`, at the convolutional initialisation: [H, rows, columns].

    None where the architecture has no such initialisation.

    Raises:
        InputError: a query outside the grid.
    """
    a = architecture
    index = _index_of(query, a.grid)
    if not (a.gpsa_layers and a.conv_init):
        return None
    v_pos = convolutional_positions(a.num_heads, a.locality_strength)
    offsets = relative_positions(a.grid)[index]
    scores = (offsets @ v_pos).T
    return np.asarray(jax.nn.softmax(scores, axis=-1)).reshape(a.num_heads, *a.grid)
