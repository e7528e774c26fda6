"""The number of parts in which a step computes its batch."""

import math

import jax.numpy as jnp
from jax.sharding import Mesh

from convit_jax.models import Architecture

# On a v5e chip, the largest part has 12 MiB of tokens, or the tokens of 64 images of 224 pixels if
# that is more. With more, the TPU compiler copies arrays of tokens, which no longer fit the fast
# memory of the core; with fewer, gradients are added up more often (docs/performance.md).
_BYTES, _TOKENS = 12 * 2**20, 64 * 197
_V5E = ("TPU v5 lite", "TPU v5e")


def num_parts(
    accumulate: int, batch_size: int, a: Architecture, mesh: Mesh | None, *, pairs: bool
) -> int:
    """Return the number of parts of a batch, which are computed one after another.

    Args:
        accumulate: the number that the config sets; 0 for the fastest: on v5e, as many as make
            parts small enough, if each chip's images divide into parts of at least half that size
            and parameters are not sharded; elsewhere 1.
        batch_size: images of the batch.
        a: the model.
        mesh: the devices that the step is compiled for; None for the default one.
        pairs: whether each chip's images of a part must be pairs.
    """
    if accumulate:
        return accumulate
    # Sharded parameters would be gathered for every part.
    if mesh is None or mesh.shape["fsdp"] > 1:
        return 1
    if mesh.devices.flat[0].device_kind not in _V5E:
        return 1
    tokens = math.prod(a.grid) + 1 + a.distillation_token
    image_bytes = tokens * a.width * jnp.dtype(a.dtype).itemsize
    largest = max(_BYTES // image_bytes, _TOKENS // tokens)
    images, unit = batch_size // mesh.size, 2 if pairs else 1
    sizes = range(largest - largest % unit, largest // 2, -unit)
    fitting = (images // size for size in sizes if images % size == 0)
    return 1 if images <= largest else next(fitting, 1)
