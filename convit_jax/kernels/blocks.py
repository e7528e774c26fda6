"""The block sizes of a fused attention kernel, and how much of a core's VMEM they need."""

import dataclasses
import math

import jax.numpy as jnp

LANES = 128
# Bytes of VMEM reserved for the compiler's own use.
_RESERVED = 3 * 2**20
# Heads are unrolled while the scores of a grid step fill at most this many registers (8 x 128), so
# that one head's arithmetic overlaps the next one's matrix products. With more, the program would
# grow long, and the tiles of queries within a head overlap instead.
_MAX_UNROLLED_SCORES = 1024
# The queries of a head form a single tile up to this many (padded) tokens.
_MAX_SINGLE_TILE = 256


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The shape of a grid step.

    Scores have their keys along the sublanes and their queries along the lanes, so that the
    softmax's sums run across registers, not within them, and every head is a block of whole rows.

    Attributes:
        tokens: N.
        heads: H.
        channels: D, channels per head.
        images: images per grid step.
        group: heads per grid step; a divisor of H.
        tile: queries whose scores are computed at once; a multiple of `LANES`.
        cores: cores of a chip, which take the steps in turn.
    """

    tokens: int
    heads: int
    channels: int
    images: int
    group: int
    tile: int
    cores: int = 1

    @property
    def lanes(self) -> int:
        """Number of queries, padded to whole registers."""
        return -(-self.tokens // LANES) * LANES

    @property
    def groups(self) -> int:
        """Number of groups of heads."""
        return self.heads // self.group

    def grid(self, batch: int) -> tuple[int, int, int]:
        """Return the grid of a batch: groups of heads, cores, and steps of a core."""
        return self.groups, self.cores, batch // (self.images * self.cores)

    @property
    def rows(self) -> int:
        """Channels of all heads of a group."""
        return self.group * self.channels

    @property
    def unrolled(self) -> bool:
        """Whether the heads of a step are unrolled instead of looped over."""
        scores = math.ceil(self.tokens / 8) * self.lanes // LANES
        return self.images * self.group * scores <= _MAX_UNROLLED_SCORES

    @property
    def tiles(self) -> range:
        """Index of the first query of each tile."""
        return range(0, self.lanes, self.tile)


def fitting_blocks(
    batch: int,
    tokens: int,
    heads: int,
    channels: int,
    dtype: jnp.dtype,
    memory: int,
    cores: int = 1,
) -> Blocks | None:
    """Return the blocks with the fewest groups of heads that fit the memory.

    Args:
        batch: B, images per device.
        tokens: N.
        heads: H.
        channels: D.
        dtype: of queries, keys and values.
        memory: bytes of a core's VMEM.
        cores: cores of a chip; one does all steps if the number of steps is not a multiple.

    Returns:
        The blocks, or None if the kernel does not support these inputs.
    """
    size = jnp.dtype(dtype).itemsize
    # A head must fill whole registers, which hold 8 rows of four bytes each.
    if dtype not in (jnp.float32, jnp.bfloat16) or channels % (32 // size) or batch < 1:
        return None
    lanes = -(-tokens // LANES) * LANES
    tile = lanes if lanes <= _MAX_SINGLE_TILE else LANES
    for groups in range(1, heads + 1):
        if heads % groups:
            continue
        for images in (2, 1):
            divided = cores if batch // images % cores == 0 else 1
            blocks = Blocks(tokens, heads, channels, images, heads // groups, tile, divided)
            if images == 2 and (batch % 2 or not blocks.unrolled):
                continue
            if backward_bytes(blocks, size) <= memory - _RESERVED:
                return blocks
    return None


def backward_bytes(blocks: Blocks, size: int) -> int:
    """Return the VMEM bytes of the backward kernel's arrays; the forward kernel needs fewer.

    Args:
        blocks: the grid step.
        size: bytes per element of queries, keys and values.
    """
    tokens = math.ceil(blocks.tokens / 16) * 16
    channels = math.ceil(blocks.heads * blocks.channels / LANES) * LANES
    # Inputs are queries, keys, values and the output's gradient; outputs are three gradients. All
    # are double-buffered: one copy is transferred while the other is used.
    inputs = 2 * blocks.images * tokens * 4 * channels * size
    outputs = 2 * blocks.images * 3 * max(tokens * channels // blocks.groups, 1) * size
    # The same arrays, transposed. Gradients that are summed over tiles are float32.
    transposed = blocks.images * blocks.lanes * blocks.rows * (4 * size + 3 * 4)
    # The positional map (double-buffered), its gradient, and the score maps in use.
    maps = (3 * blocks.group + 4) * tokens * blocks.lanes * 4
    return inputs + outputs + transposed + maps
