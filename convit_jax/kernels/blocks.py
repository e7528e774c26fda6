"""How a fused attention kernel cuts its work up, and what that takes of a core's fast memory."""

import dataclasses
import math

import jax.numpy as jnp

LANES = 128
# Of a core's fast memory, left for what the compiler keeps there itself.
_SPARE = 3 * 2**20
# Score registers (8 x 128) of a grid step up to which its heads are written out one after another,
# so that one head's arithmetic overlaps the next one's products; beyond, the program would grow
# long, and a head's own tiles of queries overlap instead.
_WRITTEN_OUT = 1024
# Tokens up to which a head's queries are one tile.
_ONE_TILE = 256


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The shape of a grid step.

    Scores lie with their keys along the sublanes and their queries along the lanes, so that the
    softmax's sums run over registers, not within them, and every head is a block of whole rows.

    Attributes:
        tokens: N.
        heads: H.
        channels: D, of a head.
        images: of a grid step.
        group: heads of a grid step; a divisor of H.
        tile: queries whose scores are computed at once; a multiple of the lanes.
    """

    tokens: int
    heads: int
    channels: int
    images: int
    group: int
    tile: int

    @property
    def lanes(self) -> int:
        """Queries, padded to whole registers."""
        return -(-self.tokens // LANES) * LANES

    @property
    def groups(self) -> int:
        """Groups of heads."""
        return self.heads // self.group

    @property
    def rows(self) -> int:
        """Channels of a group's heads together."""
        return self.group * self.channels

    @property
    def written_out(self) -> bool:
        """Whether the heads of a step are written out rather than looped over."""
        scores = math.ceil(self.tokens / 8) * self.lanes // LANES
        return self.images * self.group * scores <= _WRITTEN_OUT

    @property
    def tiles(self) -> range:
        """First query of each tile."""
        return range(0, self.lanes, self.tile)


def fitting_blocks(
    batch: int, tokens: int, heads: int, channels: int, dtype: jnp.dtype, memory: int
) -> Blocks | None:
    """The blocks for some inputs: as few groups of heads as the memory allows.

    Args:
        batch: B, images of one device.
        tokens: N.
        heads: H.
        channels: D.
        dtype: of queries, keys and values.
        memory: bytes of a core's fast memory.

    Returns:
        The blocks, or None if the kernel cannot do it.
    """
    size = jnp.dtype(dtype).itemsize
    # A head must be whole rows of registers, which hold 8 rows of four bytes each.
    if dtype not in (jnp.float32, jnp.bfloat16) or channels % (32 // size) or batch < 1:
        return None
    lanes = -(-tokens // LANES) * LANES
    tile = lanes if lanes <= _ONE_TILE else LANES
    for groups in range(1, heads + 1):
        if heads % groups:
            continue
        for images in (2, 1):
            blocks = Blocks(tokens, heads, channels, images, heads // groups, tile)
            if images == 2 and (batch % 2 or not blocks.written_out):
                continue
            if backward_bytes(blocks, size) <= memory - _SPARE:
                return blocks
    return None


def backward_bytes(blocks: Blocks, size: int) -> int:
    """Fast memory that the backward kernel's arrays take, which are more than the forward's.

    Args:
        blocks: the grid step.
        size: bytes of an element of queries, keys and values.
    """
    tokens = math.ceil(blocks.tokens / 16) * 16
    channels = math.ceil(blocks.heads * blocks.channels / LANES) * LANES
    # Queries, keys, values and the output's gradient come in, three gradients go out, each twice:
    # one is moved while the other is worked on.
    moved = 2 * blocks.images * tokens * 4 * channels * size
    out = 2 * blocks.images * 3 * max(tokens * channels // blocks.groups, 1) * size
    # The same, transposed; the gradients are float32 where tiles add up to them.
    turned = blocks.images * blocks.lanes * blocks.rows * (4 * size + 3 * 4)
    # The positional map (twice), its gradient, and some score maps in flight.
    maps = (3 * blocks.group + 4) * tokens * blocks.lanes * 4
    return moved + out + turned + maps
