"""The backward kernel: recomputes the softmax, and adds up the gradient by position over images.

With A = (1 - g) P + g T, the mixture of content P and position T, and a gradient dO of O = A V:

    dA = dO Vᵀ,  dV = Aᵀ dO,  dT = g Σ dA,  dg = Σ dA (T - P),
    dS = (1 - g) P (dA - r)  with  r = Σ_keys P dA,  the gradient of the scores before scaling.

The sums over images are kept in fast memory from the first step to the last; as in the forward
kernel everything is transposed inside a step.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from convit_jax.kernels.blocks import Blocks
from convit_jax.kernels.fused_forward import (
    Unit,
    for_each_group,
    group_of_heads,
    lanes_of,
    load_transposed,
    log_sums_of,
    pad_queries,
    product,
    result_of,
    rows_of,
    run_units,
    tokens_of,
)


def _kernel(blocks: Blocks, parts_count: int, gated: bool, *refs: Any) -> None:
    """One step: `images` images and `group` heads."""
    gate, refs = (refs[0], refs[1:]) if gated else (None, refs)
    parts, (d_out, log_sums, *refs) = refs[:parts_count], refs[parts_count:]
    by_position, refs = (refs[0], refs[1:]) if gated else (None, refs)
    results = parts_count if blocks.groups == 1 else 3
    d_parts, refs = refs[:results], refs[results:]
    (d_maps, content), refs = (refs[:2], refs[2:]) if gated else ((None, None), refs)
    turned, turned_out, d_turned = refs
    tokens = blocks.tokens
    first_head = pl.program_id(0) * blocks.group

    first_step = pl.program_id(1) == 0

    def add(image: int, total: Any, where: Any, x: jax.Array) -> None:
        """Adds to what earlier images left; the first finds nothing that is worth keeping."""
        before = total[where] if image else jnp.where(first_step, 0.0, total[where])
        total[where] = before + x

    def load(image: int) -> None:
        load_transposed(blocks, image, parts, turned)

        def load_gradient(group: int) -> None:
            _, lanes = lanes_of([d_out.shape[-1]], blocks.rows, group * blocks.rows)
            turned_out[image, :, :tokens] = d_out[image, :, lanes].T

        for_each_group(blocks, load_gradient)
        pad_queries(blocks, image, turned_out)

    def scores(unit: Unit) -> tuple[jax.Array, jax.Array]:
        image, head, query = unit
        tile = pl.ds(query, blocks.tile)
        queries = turned[image, rows_of(blocks, 0, head), tile]
        gradient = turned_out[image, rows_of(blocks, 0, head), tile]
        keys = turned[image, rows_of(blocks, 1, head), :tokens]
        v = turned[image, rows_of(blocks, 2, head), :tokens]
        return product(keys, queries, (0, 0)), product(v, gradient, (0, 0))

    def mix(unit: Unit, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        image, head, query = unit
        tile, (by_content, d_mixed) = pl.ds(query, blocks.tile), found
        weights = jnp.exp2(by_content - log_sums[image, 0, head, :, tile])
        weighted = weights * d_mixed
        total = jnp.sum(weighted, axis=0, keepdims=True)
        d_scores = (weighted - weights * total).astype(turned.dtype)
        if gate is None:
            return weights.astype(turned.dtype), d_scores
        add(image, d_maps, (head, slice(None), tile), d_mixed)
        add(image, content, (0, head, slice(None), tile), total)
        mixed = weights * (1.0 - gate[first_head + head]) + by_position[head, :, tile]
        return mixed.astype(turned.dtype), d_scores

    def values(unit: Unit, mixed: tuple[jax.Array, jax.Array]) -> None:
        image, head, query = unit
        tile, (weights, d_scores) = pl.ds(query, blocks.tile), mixed
        share = 1.0 if gate is None else 1.0 - gate[first_head + head]
        queries = turned[image, rows_of(blocks, 0, head), tile]
        gradient = turned_out[image, rows_of(blocks, 0, head), tile]
        keys = turned[image, rows_of(blocks, 1, head), :tokens]
        # The scores are q' · k with q' = q log2(e) / √D, and their gradient is by the base e.
        d_queries = product(keys, d_scores, (1, 0)) * (share * blocks.channels**-0.5)
        d_keys = product(queries, d_scores, (1, 1)) * (share * math.log(2.0))
        d_values = product(gradient, weights, (1, 1))
        d_turned[image, rows_of(blocks, 0, head), tile] = d_queries.astype(d_turned.dtype)
        for kind, d in ((1, d_keys), (2, d_values)):
            rows = rows_of(blocks, kind, head)
            if query:
                d_turned[image, rows, :tokens] += d
            else:
                d_turned[image, rows, :tokens] = d.astype(d_turned.dtype)

    def store(image: int) -> None:
        if blocks.groups > 1:
            for kind, d_part in enumerate(d_parts):
                rows = slice(kind * blocks.rows, (kind + 1) * blocks.rows)
                d_part[image] = d_turned[image, rows, :tokens].astype(d_part.dtype)
            return
        start = 0
        for d_part in d_parts:
            rows = slice(start, start + d_part.shape[-1])
            d_part[image] = d_turned[image, rows, :tokens].astype(d_part.dtype).T
            start = rows.stop

    run_units(blocks, load, scores, mix, values, store)


def call_backward(
    blocks: Blocks,
    parts: Sequence[jax.Array],
    d_out: jax.Array,
    log_sums: jax.Array,
    by_position: jax.Array | None,
    gate: jax.Array | None,
    *,
    memory: int,
    interpret: bool,
) -> tuple[list[jax.Array], jax.Array | None, jax.Array | None]:
    """Runs the kernel.

    Args:
        blocks: how the work is cut up.
        parts, by_position, gate, memory, interpret: as given to `call_forward`.
        d_out: gradient of the result, [B, N, H D].
        log_sums: from `call_forward`.

    Returns:
        Gradients of q, k and v before q was scaled: like `parts`, or with several groups three
        arrays [B, H D, N]; and where there is a gate, transposed and padded, Σ dA over the images,
        float32 [H, keys, lanes], and Σ r, float32 [groups, group, 1, lanes].
    """
    batch, dtype = parts[0].shape[0], parts[0].dtype
    width, gated = blocks.heads * blocks.channels, gate is not None
    widths = [part.shape[-1] for part in parts] if blocks.groups == 1 else [width] * 3
    results = [result_of(blocks, each) for each in widths]
    in_specs = [tokens_of(blocks, part.shape[-1]) for part in parts]
    in_specs += [tokens_of(blocks, width), log_sums_of(blocks)]
    operands = [*parts, d_out, log_sums]
    out_specs = [spec for spec, _ in results]
    out_shape = [jax.ShapeDtypeStruct((batch, *shape), dtype) for _, shape in results]
    if gated:
        in_specs = [pl.BlockSpec(memory_space=pltpu.SMEM), *in_specs, group_of_heads(blocks)]
        operands = [gate, *operands, by_position]
        row = (1, blocks.group, 1, blocks.lanes)
        out_specs += [group_of_heads(blocks), pl.BlockSpec(row, lambda group, _: (group, 0, 0, 0))]
        maps, rows = (blocks.heads, blocks.tokens, blocks.lanes), (blocks.groups, *row[1:])
        out_shape += [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (maps, rows)]
    transposed = (blocks.images, blocks.rows, blocks.lanes)
    # What several tiles of queries add up to stays float32 until it is whole.
    sums = dtype if len(blocks.tiles) == 1 else jnp.float32
    found = pl.pallas_call(
        functools.partial(_kernel, blocks, len(parts), gated),
        name="attention_backward",
        grid=(blocks.groups, batch // blocks.images),
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=out_shape,
        scratch_shapes=[
            pltpu.VMEM((blocks.images, 3 * blocks.rows, blocks.lanes), dtype),
            pltpu.VMEM(transposed, dtype),
            pltpu.VMEM((blocks.images, 3 * blocks.rows, blocks.lanes), sums),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=memory
        ),
        interpret=interpret,
    )(*operands)
    d_parts = list(found[: len(widths)])
    return (d_parts, *found[len(widths) :]) if gated else (d_parts, None, None)
