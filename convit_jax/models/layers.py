"""Building blocks in the form that compilers make the most of."""

import jax
import jax.numpy as jnp
from flax import nnx


class Linear(nnx.Linear):
    """A linear layer on every token: [..., inputs] → [..., outputs].

    On a CPU the tokens of all images are multiplied as one matrix: XLA computes [B · N, C] @ W
    faster than [B, N, C] @ W, by a quarter with what surrounds it. Elsewhere that reshape could
    cost a copy, since N is not a multiple of the tiles that tokens are stored in.
    """

    def __call__(self, x: jax.Array) -> jax.Array:
        """Multiplies, and adds the bias if there is one."""
        apply = super().__call__

        def flattened(x: jax.Array) -> jax.Array:
            return apply(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)

        return jax.lax.platform_dependent(x, cpu=flattened, default=apply)

    def parts(self, x: jax.Array, count: int) -> tuple[jax.Array, ...]:
        """The output in `count` equal parts side by side, each computed by a product of its own."""
        if count == 1:
            return (self(x),)
        kernel, bias = (
            None if p is None else jnp.split(p[...], count, axis=-1)
            for p in (self.kernel, self.bias)
        )
        x, *kernel = nnx.nn.dtypes.promote_dtype((x, *kernel), dtype=self.dtype)
        products = (x @ part for part in kernel)
        if bias is None:
            return tuple(products)
        return tuple(p + b.astype(p.dtype) for p, b in zip(products, bias, strict=True))


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """X Φ(x), with the exact normal distribution Φ.

    For a gradient it stores its value and its slope, in the type of `x`, and `x` need not be kept.
    Compilers would rather compute the value again within every product that reads it, which for
    TPUs made the longest programs of a training step, and not faster ones.
    """
    return x * _normal_distribution(x)


def _normal_distribution(x: jax.Array) -> jax.Array:
    """Φ(x)."""
    return 0.5 + 0.5 * jax.lax.erf(x * jnp.asarray(0.5**0.5, x.dtype))


def _gelu_with_slope(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """X Φ(x), and its derivative Φ(x) + x φ(x)."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    distribution = _normal_distribution(wide)
    density = jnp.exp(-0.5 * wide**2) * (2 * jnp.pi) ** -0.5
    value, slope = wide * distribution, distribution + wide * density
    return jax.lax.optimization_barrier((value.astype(x.dtype), slope.astype(x.dtype)))


gelu.defvjp(_gelu_with_slope, lambda slope, gradient: (gradient * slope,))


def drop_path(branch: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Stochastic depth: leaves a residual branch out for some images, in training.

    Args:
        branch: [B, N, C].
        rate: the share of images left out, in [0, 1); what is kept is divided by 1 - `rate`.
        key: the randomness, or None for none: the branch as it is.
    """
    if key is None:
        return branch
    keep = 1 - rate
    kept = jax.random.bernoulli(key, keep, (branch.shape[0], 1, 1))
    # The rate differs from layer to layer. Behind the barrier it stays out of what a compiler
    # fuses with the branch: layers are then alike, and compiled once rather than each.
    scale = jax.lax.optimization_barrier(kept / jnp.float32(keep))
    return (branch * scale).astype(branch.dtype)
