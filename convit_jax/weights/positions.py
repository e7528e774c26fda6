"""Resampling of absolute positions to another grid of patches."""

import jax
import jax.numpy as jnp
import numpy as np


def resample_positions(
    pos_embed: np.ndarray, old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> np.ndarray:
    """Resample absolute positions to another grid with an antialiased bicubic filter.

    The relative positions r_ij need no resampling: they are computed from the grid (paper Eq. 5),
    in patches, and v_pos · r_ij depends on the offset only.

    Args:
        pos_embed: [1, N, C], row-major over `old_grid`, after the class token's row if there is
            one.
        old_grid, new_grid: (rows, columns) of patches.

    Returns:
        [1, N', C] for the new grid, with the class token's row unchanged.
    """
    width = pos_embed.shape[-1]
    num_class_rows = pos_embed.shape[1] - old_grid[0] * old_grid[1]
    grid = pos_embed[0, num_class_rows:].reshape(*old_grid, width)
    resampled = jax.image.resize(jnp.asarray(grid), (*new_grid, width), "cubic")
    patches = np.asarray(resampled).reshape(1, -1, width)
    return np.concatenate([pos_embed[:, :num_class_rows], patches], axis=1)
