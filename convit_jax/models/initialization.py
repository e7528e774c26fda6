"""Initialisations of plain attention that give a transformer a convolution's bias without a gate.

*Mimetic* (Trockman & Kolter 2023, arXiv 2305.09828): the products of query and key weights are near
the identity, those of value and output weights near minus the identity, as in trained models.

*Impulse* (Zheng et al. 2024 and 2025, arXiv 2404.01139 and 2505.19985): the attention of each head
to the positions is near a one-hot at a random offset of a small window, the filter of a convolution
with a single tap.

Both start from sinusoidal absolute positions, which are trained like any others.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

# The factors of the identity and of the noise in both products, as in the paper on mimetic
# initialisation: α1 = β1 for queries and keys, α2 = β2 for values and output.
QUERY_KEY_SCALE, VALUE_OUTPUT_SCALE = 0.7, 0.4
# Side of the impulses' window, in patches: 3 or 5 in the papers.
IMPULSE_WINDOW = 3
# By how much the score of the patch at a head's offset exceeds the mean score: the inverse
# temperature of the impulses.
IMPULSE_SHARPNESS = 20.0
# The positions are a part of the normalised tokens; the rest, the content, is noise to the solution
# for the positions. In a new model it has about this variance.
_CONTENT_VARIANCE = 0.3
# The longest wavelength of the positions, in patches, is 2π times this (Vaswani et al. 2017).
_TEMPERATURE = 10_000.0


def sinusoidal_positions(grid: tuple[int, int], width: int, class_tokens: int = 0) -> np.ndarray:
    """Return sines and cosines of the columns, then of the rows, of frequencies from 1 down.

    Args:
        grid: (rows, columns) of patches.
        width: C, a multiple of four.
        class_tokens: rows for class tokens, which come first and are zero.

    Returns:
        float32 [class_tokens + N, C], patches in row-major order.
    """
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    frequencies = _TEMPERATURE ** (-np.arange(width // 4) / (width // 4))
    angles = (columns[:, None] * frequencies, rows[:, None] * frequencies)
    patches = np.concatenate([wave(a) for a in angles for wave in (np.sin, np.cos)], axis=1)
    return np.pad(patches, ((class_tokens, 0), (0, 0))).astype(np.float32)


def mimetic_queries_keys(key: jax.Array, num_heads: int, head_dim: int) -> jax.Array:
    """W_qry and W_key whose product is near 0.7 (I + Z) in each head, Z ~ N(0, 1/C).

    The product of a head has rank D: it is the best approximation of that rank (its first singular
    vectors), and both factors get the roots of its singular values.

    Args:
        key: random key.
        num_heads: H.
        head_dim: D.

    Returns:
        float32 [C, 2 C]: queries, then keys, as `SelfAttention.qkv` has them; C = H D.
    """
    width = num_heads * head_dim
    target = QUERY_KEY_SCALE * (_noise(key, (num_heads, width, width)) + jnp.eye(width))
    queries, keys = _factors(target)
    by_head = jnp.stack([queries[..., :head_dim], keys[..., :head_dim]])  # [2, H, C, D]
    return by_head.transpose(2, 0, 1, 3).reshape(width, 2 * width)


def mimetic_values_output(key: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
    """W_val and W_out, float32 [C, C] each, whose product is 0.4 (Z - I), Z ~ N(0, 1/C)."""
    values, output = _factors(VALUE_OUTPUT_SCALE * (_noise(key, (width, width)) - jnp.eye(width)))
    return values, output.T


def _noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Z: float32, normal with variance 1/C, C the last axis."""
    return jax.random.normal(key, shape) * shape[-1] ** -0.5


def _factors(product: jax.Array) -> tuple[jax.Array, jax.Array]:
    """U √S and V √S of the singular value decomposition U S Vᵀ: [..., C, C] → [..., C, C] each."""
    u, s, vt = jnp.linalg.svd(product)
    root = jnp.sqrt(s)[..., None, :]
    return u * root, jnp.swapaxes(vt, -1, -2) * root


def impulse_offsets(key: jax.Array, num_heads: int) -> jax.Array:
    """Return the random offset of each head: int32 [H, 2], (along x, along y), in patches."""
    numbers = jax.random.randint(key, (num_heads,), 0, IMPULSE_WINDOW**2)
    y, x = jnp.divmod(numbers, IMPULSE_WINDOW)
    return jnp.stack([x, y], axis=-1) - IMPULSE_WINDOW // 2


def impulse_queries_keys(
    key: jax.Array, grid: tuple[int, int], num_heads: int, head_dim: int
) -> jax.Array:
    """W_qry and W_key with which each head attends to the patch at its `impulse_offsets`.

    Args:
        key: random key of the offsets.
        grid: (rows, columns) of patches.
        num_heads: H.
        head_dim: D.

    Returns:
        float32 [C, 2 C]: queries, then keys, as `SelfAttention.qkv` has them; C = H D.
    """
    width = num_heads * head_dim
    solutions = jnp.asarray(_impulse_solutions(grid, width, head_dim))
    x, y = (impulse_offsets(key, num_heads) + IMPULSE_WINDOW // 2).T
    by_head = solutions[y * IMPULSE_WINDOW + x]  # [H, 2, C, D]
    return by_head.transpose(2, 1, 0, 3).reshape(width, 2 * width)


@functools.cache
def _impulse_solutions(grid: tuple[int, int], width: int, head_dim: int) -> np.ndarray:
    """Return W_qry and W_key of a head for each offset of the window: float32 [W², 2, C, D].

    The one-hot map H of an offset is the target for P W_qry W_keyᵀ Pᵀ, with P the normalised
    positions. The solution P⁺ H P⁺ᵀ has the pseudo-inverse of P that is the least-squares one in
    noise of the content's variance; without that, it would divide by singular values near zero. Its
    best approximation of rank D is scaled to the sharpness.
    """
    positions = sinusoidal_positions(grid, width).astype(np.float64)
    positions -= positions.mean(axis=1, keepdims=True)
    positions /= positions.std(axis=1, keepdims=True)
    u, s, vt = np.linalg.svd(positions, full_matrices=False)
    inverse = s / (s**2 + len(positions) * _CONTENT_VARIANCE)  # P⁺ = V diag(inverse) Uᵀ
    side = IMPULSE_WINDOW // 2
    window = range(-side, side + 1)
    solutions = []
    for one_hot in (_one_hot_map(grid, x, y) for y in window for x in window):
        # In the coordinates of the singular vectors: at most N x N, where P⁺ H P⁺ᵀ is C x C.
        left, values, right = np.linalg.svd(inverse[:, None] * (u.T @ one_hot @ u) * inverse)
        left, right = vt.T @ left[:, :head_dim], vt.T @ right[:head_dim].T
        scores = (positions @ left * values[:head_dim]) @ (positions @ right).T
        inside = one_hot.any(axis=1)
        gap = ((scores * one_hot).sum(axis=1) - scores.mean(axis=1))[inside].mean()
        root = np.sqrt(values[:head_dim] * IMPULSE_SHARPNESS * head_dim**0.5 / gap)
        factors = np.stack([left * root, right * root])
        padding = head_dim - factors.shape[-1]  # for more channels than patches
        solutions.append(np.pad(factors, ((0, 0), (0, 0), (0, padding))))
    return np.array(solutions, np.float32)


def _one_hot_map(grid: tuple[int, int], x: int, y: int) -> np.ndarray:
    """H of an offset: [N, N], one where the key is at that offset from the query.

    A query whose offset lies outside of the grid has no such key, and a row of zeros.
    """
    rows, columns = (np.eye(size, k=offset) for size, offset in zip(grid, (y, x), strict=True))
    return np.kron(rows, columns)
