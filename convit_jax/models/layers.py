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


def gelu(x: jax.Array) -> jax.Array:
    """X Φ(x), with the exact normal distribution; written so that its gradient stores little."""
    return x * (0.5 + 0.5 * jax.lax.erf(x * jnp.asarray(0.5**0.5, x.dtype)))
