"""Absolute positions for another grid of patches."""

import jax
import jax.numpy as jnp
import numpy as np


def resample_positions(
    pos_embed: np.ndarray, old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> np.ndarray:
    """Absolute positions of one grid, stretched over another by an antialiased bicubic filter.

    Relative positions need nothing of the kind: they are offsets in patches, computed from the
    grid (Eq. 5), and v_pos weighs an offset alike wherever it occurs.

    Args:
        pos_embed: [1, rows, C], row-major over `old_grid`, after the class token's row if it has
            one.
        old_grid, new_grid: (rows, columns) of patches.

    Returns:
        [1, rows of the new grid, C], with the class token's row as it was.
    """
    width = pos_embed.shape[-1]
    of_class = pos_embed.shape[1] - old_grid[0] * old_grid[1]
    grid = pos_embed[0, of_class:].reshape(*old_grid, width)
    stretched = jax.image.resize(jnp.asarray(grid), (*new_grid, width), "cubic")
    patches = np.asarray(stretched).reshape(1, -1, width)
    return np.concatenate([pos_embed[:, :of_class], patches], axis=1)
