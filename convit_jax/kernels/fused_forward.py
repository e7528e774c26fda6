"""The forward kernel: scores, softmax, mixing and values of some images in fast memory.

Shapes as in `fused`; `Blocks` says how a grid step is cut. Inside a step everything is transposed:
queries, keys and values are [D, N] for each head, scores [keys, queries].
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from convit_jax.kernels.blocks import Blocks

# A unit of work: image, head (within the group) and first query of a step.
Unit = tuple[Any, Any, int]


def product(a: jax.Array, b: jax.Array, over: tuple[int, int]) -> jax.Array:
    """The matrix product of a and b over an axis of each, in float32."""
    if 1 in a.shape or 1 in b.shape:
        # The TPU compiler makes these products of elements, whose types must agree.
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return jax.lax.dot_general(
        a, b, (((over[0],), (over[1],)), ((), ())), preferred_element_type=jnp.float32
    )


def run_units(
    blocks: Blocks,
    load: Callable[[int], None],
    scores: Callable[[Unit], Any],
    mix: Callable[[Unit, Any], Any],
    values: Callable[[Unit, Any], None],
    store: Callable[[int], None],
) -> None:
    """Runs the three stages of every unit, staggered.

    The compiler overlaps what stands close together: the matrix products of one unit's `scores` and
    of another's `values` stand around the arithmetic of a third's `mix`. `load` prepares an image,
    `store` finishes it.
    """

    def staggered(units: Sequence[Unit]) -> None:
        ahead, mixed = scores(units[0]), None
        for n, unit in enumerate(units):
            # The next image is there before its first scores are taken, and early: what prepares it
            # overlaps too.
            if blocks.written_out and unit[1:] == (0, 0) and unit[0] + 1 < blocks.images:
                load(unit[0] + 1)
            found, ahead = ahead, scores(units[n + 1]) if n + 1 < len(units) else None
            if n:
                finish(units[n - 1], mixed)
            mixed = mix(unit, found)
        finish(units[-1], mixed)

    def finish(unit: Unit, mixed: Any) -> None:
        values(unit, mixed)
        image, head, query = unit
        if blocks.written_out and head == blocks.group - 1 and query == blocks.tiles[-1]:
            store(image)

    load(0)
    tiles, images = blocks.tiles, range(blocks.images)
    if blocks.written_out:
        staggered([(i, h, t) for i in images for h in range(blocks.group) for t in tiles])
    else:
        jax.lax.fori_loop(0, blocks.group, lambda h, _: staggered([(0, h, t) for t in tiles]), None)
        store(0)


def rows_of(blocks: Blocks, kind: int, head: Any) -> Any:
    """Rows of a head's queries (kind 0), keys (1) or values (2) in a transposed array."""
    start = kind * blocks.rows + head * blocks.channels
    if isinstance(start, int):
        return slice(start, start + blocks.channels)
    return pl.ds(pl.multiple_of(start, blocks.channels & -blocks.channels), blocks.channels)


def for_each_group(blocks: Blocks, do: Callable[[int], None]) -> None:
    """Calls `do` with the number of the step's group of heads, static."""
    if blocks.groups == 1:
        do(0)
        return
    for group in range(blocks.groups):
        pl.when(pl.program_id(0) == group)(functools.partial(do, group))


def lanes_of(widths: Sequence[int], channels: int, start: int) -> tuple[int, slice]:
    """Where `channels` lanes from `start` on lie among arrays of such widths, side by side.

    Returns:
        The array's number, and the lanes in it.
    """
    for number, width in enumerate(widths):
        if start < width:
            return number, slice(start, start + channels)
        start -= width
    raise ValueError(f"no lane {start} in arrays of widths {widths}")


def load_transposed(blocks: Blocks, image: int, parts: Sequence[Any], turned: Any) -> None:
    """Queries, keys and values of a group's heads, transposed: parts [N, ...] → [3 · rows, N].

    Queries are padded with zeros to whole registers.
    """
    widths = [part.shape[-1] for part in parts]
    width = blocks.heads * blocks.channels

    def load(group: int) -> None:
        for kind in range(3):
            start = kind * width + group * blocks.rows
            number, lanes = lanes_of(widths, blocks.rows, start)
            rows = slice(kind * blocks.rows, (kind + 1) * blocks.rows)
            turned[image, rows, : blocks.tokens] = parts[number][image, :, lanes].T

    for_each_group(blocks, load)
    pad_queries(blocks, image, turned)


def pad_queries(blocks: Blocks, image: int, turned: Any) -> None:
    """Writes zeros where there are no queries: what is computed there must be finite."""
    if blocks.tokens < blocks.lanes:
        padding = (blocks.rows, blocks.lanes - blocks.tokens)
        turned[image, : blocks.rows, blocks.tokens :] = jnp.zeros(padding, turned.dtype)


def _kernel(blocks: Blocks, parts_count: int, gated: bool, *refs: Any) -> None:
    """One step: `images` images and `group` heads."""
    gate, refs = (refs[0], refs[1:]) if gated else (None, refs)
    parts, refs = refs[:parts_count], refs[parts_count:]
    by_position, refs = (refs[0], refs[1:]) if gated else (None, refs)
    out, log_sums, turned, turned_out = refs
    tokens = blocks.tokens
    first_head = pl.program_id(0) * blocks.group

    def scores(unit: Unit) -> jax.Array:
        image, head, query = unit
        keys = turned[image, rows_of(blocks, 1, head), :tokens]
        queries = turned[image, rows_of(blocks, 0, head), pl.ds(query, blocks.tile)]
        return product(keys, queries, (0, 0))

    def mix(unit: Unit, found: jax.Array) -> jax.Array:
        image, head, query = unit
        tile = pl.ds(query, blocks.tile)
        largest = jnp.max(found, axis=0, keepdims=True)
        weights = jnp.exp2(found - largest)
        total = jnp.sum(weights, axis=0, keepdims=True)
        log_sums[image, 0, head, :, tile] = largest + jnp.log2(total)
        if gate is None:
            mixed = weights * (1.0 / total)
        else:
            mixed = weights * ((1.0 - gate[first_head + head]) / total)
            mixed += by_position[head, :, tile]
        return mixed.astype(turned.dtype)

    def values(unit: Unit, mixed: jax.Array) -> None:
        image, head, query = unit
        v = turned[image, rows_of(blocks, 2, head), :tokens]
        result = product(v, mixed, (1, 0)).astype(turned_out.dtype)
        turned_out[image, rows_of(blocks, 0, head), pl.ds(query, blocks.tile)] = result

    def store(image: int) -> None:
        result = turned_out[image, :, :tokens]
        out[image] = result.T if blocks.groups == 1 else result

    run_units(
        blocks,
        functools.partial(load_transposed, blocks, parts=parts, turned=turned),
        scores,
        mix,
        values,
        store,
    )


def group_of_heads(blocks: Blocks) -> pl.BlockSpec:
    """A [H, N, lanes] array, of which a step sees its group's heads; fetched once a group."""
    shape = (blocks.group, blocks.tokens, blocks.lanes)
    return pl.BlockSpec(shape, lambda group, _: (group, 0, 0))


def tokens_of(blocks: Blocks, width: int) -> pl.BlockSpec:
    """A [B, N, width] array, of which a step sees its images."""
    return pl.BlockSpec((blocks.images, blocks.tokens, width), lambda _, step: (step, 0, 0))


def result_of(blocks: Blocks, width: int) -> tuple[pl.BlockSpec, tuple[int, int]]:
    """A result of `width` channels of all heads, and the shape of an image of it.

    One group writes [N, width]; several write their own rows of [width, N].
    """
    if blocks.groups == 1:
        return tokens_of(blocks, width), (blocks.tokens, width)
    shape = (blocks.images, width // blocks.groups, blocks.tokens)
    return pl.BlockSpec(shape, lambda group, step: (step, group, 0)), (width, blocks.tokens)


def log_sums_of(blocks: Blocks) -> pl.BlockSpec:
    """The [B, groups, group, 1, lanes] logarithms of the softmax's sums."""
    shape = (blocks.images, 1, blocks.group, 1, blocks.lanes)
    return pl.BlockSpec(shape, lambda group, step: (step, group, 0, 0, 0))


def call_forward(
    blocks: Blocks,
    parts: Sequence[jax.Array],
    by_position: jax.Array | None,
    gate: jax.Array | None,
    *,
    memory: int,
    interpret: bool,
) -> tuple[jax.Array, jax.Array]:
    """Runs the kernel.

    Args:
        blocks: how the work is cut up.
        parts: queries, keys and values, [B, N, ...] arrays which side by side are [B, N, 3 H D];
            queries are multiplied by log2(e) / √D.
        by_position: gate · positional, transposed and padded: float32 [H, keys, lanes]; or None.
        gate: float32 [H], or None.
        memory: bytes of a core's fast memory.
        interpret: run on any platform, slowly.

    Returns:
        The result, [B, N, H D] or with several groups [B, H D, N], and the base-2 logarithms of the
        softmax's sums, float32 [B, groups, group, 1, lanes].
    """
    batch, dtype = parts[0].shape[0], parts[0].dtype
    width = blocks.heads * blocks.channels
    gated = gate is not None
    out_spec, out_shape = result_of(blocks, width)
    smem = pl.BlockSpec(memory_space=pltpu.SMEM)
    in_specs = [tokens_of(blocks, part.shape[-1]) for part in parts]
    operands = list(parts)
    if gated:
        in_specs = [smem, *in_specs, group_of_heads(blocks)]
        operands = [gate, *operands, by_position]
    sums_shape = (batch, blocks.groups, blocks.group, 1, blocks.lanes)
    return pl.pallas_call(
        functools.partial(_kernel, blocks, len(parts), gated),
        name="attention_forward",
        grid=(blocks.groups, batch // blocks.images),
        in_specs=in_specs,
        out_specs=[out_spec, log_sums_of(blocks)],
        out_shape=[
            jax.ShapeDtypeStruct((batch, *out_shape), dtype),
            jax.ShapeDtypeStruct(sums_shape, jnp.float32),
        ],
        scratch_shapes=[
            pltpu.VMEM((blocks.images, 3 * blocks.rows, blocks.lanes), dtype),
            pltpu.VMEM((blocks.images, blocks.rows, blocks.lanes), dtype),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=memory
        ),
        interpret=interpret,
    )(*operands)
