"""The forward kernel: scores, softmax, mixture and values of some images in VMEM.

Shapes as in `fused`; `Blocks` describes a grid step. Within a step everything is transposed:
queries, keys and values are [D, N] per head, scores [keys, queries].
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from convit_jax.kernels.blocks import Blocks

# A unit of work within a step: image, head (within the group) and first query.
Unit = tuple[Any, Any, int]


def product(a: jax.Array, b: jax.Array, over: tuple[int, int]) -> jax.Array:
    """The matrix product of a and b, contracted over one axis of each, in float32."""
    if 1 in a.shape or 1 in b.shape:
        # The TPU compiler turns these into elementwise products, whose types must agree.
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
    """Run the three stages of every unit as a software pipeline.

    The compiler overlaps operations that are close in the program: the matrix products of one
    unit's `scores` and of another's `values` surround the elementwise arithmetic of a third's
    `mix`. `load` prepares an image, `store` writes its result.
    """

    def run_pipeline(units: Sequence[Unit]) -> None:
        next_scores, mixed = scores(units[0]), None
        for n, unit in enumerate(units):
            # Load the next image early, before its first scores are computed, so that the loading
            # overlaps too.
            if blocks.unrolled and unit[1:] == (0, 0) and unit[0] + 1 < blocks.images:
                load(unit[0] + 1)
            unit_scores = next_scores
            next_scores = scores(units[n + 1]) if n + 1 < len(units) else None
            if n:
                finish(units[n - 1], mixed)
            mixed = mix(unit, unit_scores)
        finish(units[-1], mixed)

    def finish(unit: Unit, mixed: Any) -> None:
        values(unit, mixed)
        image, head, query = unit
        if blocks.unrolled and head == blocks.group - 1 and query == blocks.tiles[-1]:
            store(image)

    load(0)
    tiles, images = blocks.tiles, range(blocks.images)
    if blocks.unrolled:
        run_pipeline([(i, h, t) for i in images for h in range(blocks.group) for t in tiles])
    else:
        jax.lax.fori_loop(
            0, blocks.group, lambda h, _: run_pipeline([(0, h, t) for t in tiles]), None
        )
        store(0)


def head_rows(blocks: Blocks, kind: int, head: Any) -> Any:
    """Rows of a head's queries (kind 0), keys (1) or values (2) in a transposed array."""
    start = kind * blocks.rows + head * blocks.channels
    if isinstance(start, int):
        return slice(start, start + blocks.channels)
    return pl.ds(pl.multiple_of(start, blocks.channels & -blocks.channels), blocks.channels)


def for_each_group(blocks: Blocks, function: Callable[[int], None]) -> None:
    """Call `function` with the index of the step's group of heads, as a static number."""
    if blocks.groups == 1:
        function(0)
        return
    for group in range(blocks.groups):
        pl.when(pl.program_id(0) == group)(functools.partial(function, group))


def locate_lanes(widths: Sequence[int], channels: int, start: int) -> tuple[int, slice]:
    """Locate `channels` lanes from `start` in the concatenation of arrays of these widths.

    Returns:
        The index of the array, and the lanes in it.
    """
    for index, width in enumerate(widths):
        if start < width:
            return index, slice(start, start + channels)
        start -= width
    raise ValueError(f"no lane {start} in arrays of widths {widths}")


def load_transposed(blocks: Blocks, image: int, parts: Sequence[Any], transposed: Any) -> None:
    """Transpose the queries, keys and values of a group's heads: [N, ...] → [3 · rows, N].

    Queries are zero-padded to whole registers.
    """
    widths = [part.shape[-1] for part in parts]
    width = blocks.heads * blocks.channels

    def load(group: int) -> None:
        for kind in range(3):
            start = kind * width + group * blocks.rows
            index, lanes = locate_lanes(widths, blocks.rows, start)
            rows = slice(kind * blocks.rows, (kind + 1) * blocks.rows)
            transposed[image, rows, : blocks.tokens] = parts[index][image, :, lanes].T

    for_each_group(blocks, load)
    pad_queries(blocks, image, transposed)


def pad_queries(blocks: Blocks, image: int, transposed: Any) -> None:
    """Zero the padding of the queries, so that everything computed from it is finite."""
    if blocks.tokens < blocks.lanes:
        padding = (blocks.rows, blocks.lanes - blocks.tokens)
        transposed[image, : blocks.rows, blocks.tokens :] = jnp.zeros(padding, transposed.dtype)


def _kernel(blocks: Blocks, num_parts: int, gated: bool, *refs: Any) -> None:
    """One grid step: `blocks.images` images and `blocks.group` heads."""
    remaining = iter(refs)
    gate = next(remaining) if gated else None
    parts = [next(remaining) for _ in range(num_parts)]
    positional: Any = next(remaining) if gated else None
    out, log_sums, transposed, transposed_out = remaining
    tokens = blocks.tokens
    first_head = pl.program_id(0) * blocks.group

    def scores(unit: Unit) -> jax.Array:
        image, head, query = unit
        keys = transposed[image, head_rows(blocks, 1, head), :tokens]
        queries = transposed[image, head_rows(blocks, 0, head), pl.ds(query, blocks.tile)]
        return product(keys, queries, (0, 0))

    def mix(unit: Unit, unit_scores: jax.Array) -> jax.Array:
        image, head, query = unit
        tile = pl.ds(query, blocks.tile)
        largest = jnp.max(unit_scores, axis=0, keepdims=True)
        weights = jnp.exp2(unit_scores - largest)
        total = jnp.sum(weights, axis=0, keepdims=True)
        log_sums[image, 0, head, :, tile] = largest + jnp.log2(total)
        if gate is None:
            mixed = weights * (1.0 / total)
        else:
            mixed = weights * ((1.0 - gate[first_head + head]) / total)
            mixed += positional[head, :, tile]
        return mixed.astype(transposed.dtype)

    def values(unit: Unit, mixed: jax.Array) -> None:
        image, head, query = unit
        v = transposed[image, head_rows(blocks, 2, head), :tokens]
        result = product(v, mixed, (1, 0)).astype(transposed_out.dtype)
        transposed_out[image, head_rows(blocks, 0, head), pl.ds(query, blocks.tile)] = result

    def store(image: int) -> None:
        result = transposed_out[image, :, :tokens]
        out[image] = result.T if blocks.groups == 1 else result

    run_units(
        blocks,
        functools.partial(load_transposed, blocks, parts=parts, transposed=transposed),
        scores,
        mix,
        values,
        store,
    )


def heads_spec(blocks: Blocks) -> pl.BlockSpec:
    """Spec of a [H, N, lanes] array: a step sees its group's heads; fetched once per group."""
    shape = (blocks.group, blocks.tokens, blocks.lanes)
    return pl.BlockSpec(shape, lambda group, *_: (group, 0, 0))


def _images_of(blocks: Blocks, core: Any, step: Any) -> Any:
    """Index of the images of a core's step, in units of `blocks.images`."""
    return step * blocks.cores + core


def tokens_spec(blocks: Blocks, width: int) -> pl.BlockSpec:
    """Spec of a [B, N, width] array: a step sees its images."""
    shape = (blocks.images, blocks.tokens, width)
    return pl.BlockSpec(shape, lambda _, *step: (_images_of(blocks, *step), 0, 0))


def result_spec(blocks: Blocks, width: int) -> tuple[pl.BlockSpec, tuple[int, int]]:
    """Spec of a result with `width` channels over all heads, and its shape per image.

    A single group writes [N, width]; each of several groups writes its rows of [width, N].
    """
    if blocks.groups == 1:
        return tokens_spec(blocks, width), (blocks.tokens, width)
    shape = (blocks.images, width // blocks.groups, blocks.tokens)
    spec = pl.BlockSpec(shape, lambda group, *step: (_images_of(blocks, *step), group, 0))
    return spec, (width, blocks.tokens)


def log_sums_spec(blocks: Blocks) -> pl.BlockSpec:
    """Spec of the logarithms of the softmax's sums, [B, groups, group, 1, lanes]."""
    shape = (blocks.images, 1, blocks.group, 1, blocks.lanes)
    return pl.BlockSpec(shape, lambda group, *step: (_images_of(blocks, *step), group, 0, 0, 0))


def call_forward(
    blocks: Blocks,
    parts: Sequence[jax.Array],
    gating: tuple[jax.Array, jax.Array] | None,
    *,
    memory: int,
    interpret: bool,
) -> tuple[jax.Array, jax.Array]:
    """Run the forward kernel.

    Args:
        blocks: block sizes.
        parts: queries, keys and values, arrays [B, N, ...] whose concatenation is [B, N, 3 H D];
            queries are multiplied by log2(e) / √D.
        gating: gate · positional, transposed and padded, float32 [H, keys, lanes], and the gate,
            float32 [H]; None for plain attention.
        memory: bytes of a core's VMEM.
        interpret: run in Pallas's interpreter, on any platform and slowly.

    Returns:
        The result, [B, N, H D] or with several groups [B, H D, N], and the base-2 logarithms of the
        softmax's sums, float32 [B, groups, group, 1, lanes].
    """
    batch, dtype = parts[0].shape[0], parts[0].dtype
    width = blocks.heads * blocks.channels
    out_spec, out_shape = result_spec(blocks, width)
    in_specs = [tokens_spec(blocks, part.shape[-1]) for part in parts]
    operands = list(parts)
    if gating is not None:
        positional, gate = gating
        in_specs = [pl.BlockSpec(memory_space=pltpu.SMEM), *in_specs, heads_spec(blocks)]
        operands = [gate, *operands, positional]
    sums_shape = (batch, blocks.groups, blocks.group, 1, blocks.lanes)
    return pl.pallas_call(
        functools.partial(_kernel, blocks, len(parts), gating is not None),
        name="attention_forward",
        grid=blocks.grid(batch),
        in_specs=in_specs,
        out_specs=[out_spec, log_sums_spec(blocks)],
        out_shape=[
            jax.ShapeDtypeStruct((batch, *out_shape), dtype),
            jax.ShapeDtypeStruct(sums_shape, jnp.float32),
        ],
        scratch_shapes=[
            pltpu.VMEM((blocks.images, 3 * blocks.rows, blocks.lanes), dtype),
            pltpu.VMEM((blocks.images, blocks.rows, blocks.lanes), dtype),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel"), vmem_limit_bytes=memory
        ),
        interpret=interpret,
    )(*operands)
