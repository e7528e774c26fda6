"""The backward kernel: recomputes the softmax and sums the positional gradient over the images.

With A = (1 - g) P + g T, the mixture of content P and position T, and a gradient dO of O = A V:

    dA = dO Vᵀ,  dV = Aᵀ dO,  dT = g Σ dA,  dg = Σ dA (T - P),
    dS = (1 - g) P (dA - r)  with  r = Σ_keys P dA,  the gradient of the scores before scaling.

The sums over the images of each core stay in VMEM from its first step to its last. As in the
forward kernel, everything is transposed within a step.
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
    head_rows,
    heads_spec,
    load_transposed,
    locate_lanes,
    log_sums_spec,
    pad_queries,
    product,
    result_spec,
    run_units,
    tokens_spec,
)


def _kernel(blocks: Blocks, num_parts: int, gated: bool, *refs: Any) -> None:
    """One grid step: `blocks.images` images and `blocks.group` heads."""
    remaining = iter(refs)
    gate = next(remaining) if gated else None
    parts = [next(remaining) for _ in range(num_parts)]
    d_out, log_sums = next(remaining), next(remaining)
    positional: Any = next(remaining) if gated else None
    d_parts = [next(remaining) for _ in range(num_parts if blocks.groups == 1 else 3)]
    d_maps, row_sums = (next(remaining), next(remaining)) if gated else (None, None)
    transposed, transposed_out, d_transposed = remaining
    tokens = blocks.tokens
    first_head = pl.program_id(0) * blocks.group
    first_step = pl.program_id(2) == 0

    def accumulate(image: int, total: Any, index: Any, x: jax.Array) -> None:
        """Add x to the sum over earlier images; for the first image the sum is uninitialised."""
        before = total[index] if image else jnp.where(first_step, 0.0, total[index])
        total[index] = before + x

    def load(image: int) -> None:
        load_transposed(blocks, image, parts, transposed)

        def load_gradient(group: int) -> None:
            _, lanes = locate_lanes([d_out.shape[-1]], blocks.rows, group * blocks.rows)
            transposed_out[image, :, :tokens] = d_out[image, :, lanes].T

        for_each_group(blocks, load_gradient)
        pad_queries(blocks, image, transposed_out)

    def scores(unit: Unit) -> tuple[jax.Array, jax.Array]:
        image, head, query = unit
        tile = pl.ds(query, blocks.tile)
        queries = transposed[image, head_rows(blocks, 0, head), tile]
        gradient = transposed_out[image, head_rows(blocks, 0, head), tile]
        keys = transposed[image, head_rows(blocks, 1, head), :tokens]
        v = transposed[image, head_rows(blocks, 2, head), :tokens]
        return product(keys, queries, (0, 0)), product(v, gradient, (0, 0))

    def mix(unit: Unit, products: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        image, head, query = unit
        tile, (unit_scores, d_mixture) = pl.ds(query, blocks.tile), products
        weights = jnp.exp2(unit_scores - log_sums[image, 0, head, :, tile])
        weighted = weights * d_mixture
        total = jnp.sum(weighted, axis=0, keepdims=True)
        d_scores = (weighted - weights * total).astype(transposed.dtype)
        if gate is None:
            return weights.astype(transposed.dtype), d_scores
        accumulate(image, d_maps, (head, slice(None), tile), d_mixture)
        accumulate(image, row_sums, (0, head, slice(None), tile), total)
        mixed = weights * (1.0 - gate[first_head + head]) + positional[head, :, tile]
        return mixed.astype(transposed.dtype), d_scores

    def values(unit: Unit, mixed: tuple[jax.Array, jax.Array]) -> None:
        image, head, query = unit
        tile, (weights, d_scores) = pl.ds(query, blocks.tile), mixed
        content_share = 1.0 if gate is None else 1.0 - gate[first_head + head]
        queries = transposed[image, head_rows(blocks, 0, head), tile]
        gradient = transposed_out[image, head_rows(blocks, 0, head), tile]
        keys = transposed[image, head_rows(blocks, 1, head), :tokens]
        # The scores are q' · k with q' = q log2(e) / √D; d_scores is the gradient in base e.
        d_queries = product(keys, d_scores, (1, 0)) * (content_share * blocks.channels**-0.5)
        d_keys = product(queries, d_scores, (1, 1)) * (content_share * math.log(2.0))
        d_values = product(gradient, weights, (1, 1))
        d_transposed[image, head_rows(blocks, 0, head), tile] = d_queries.astype(d_transposed.dtype)
        for kind, d in ((1, d_keys), (2, d_values)):
            rows = head_rows(blocks, kind, head)
            if query:
                d_transposed[image, rows, :tokens] += d
            else:
                d_transposed[image, rows, :tokens] = d.astype(d_transposed.dtype)

    def store(image: int) -> None:
        if blocks.groups > 1:
            for kind, d_part in enumerate(d_parts):
                rows = slice(kind * blocks.rows, (kind + 1) * blocks.rows)
                d_part[image] = d_transposed[image, rows, :tokens].astype(d_part.dtype)
            return
        start = 0
        for d_part in d_parts:
            rows = slice(start, start + d_part.shape[-1])
            d_part[image] = d_transposed[image, rows, :tokens].astype(d_part.dtype).T
            start = rows.stop

    run_units(blocks, load, scores, mix, values, store)


def call_backward(
    blocks: Blocks,
    parts: Sequence[jax.Array],
    d_out: jax.Array,
    log_sums: jax.Array,
    gating: tuple[jax.Array, jax.Array] | None,
    *,
    memory: int,
    interpret: bool,
) -> tuple[list[jax.Array], jax.Array | None, jax.Array | None]:
    """Run the backward kernel.

    Args:
        blocks: block sizes.
        parts, gating, memory, interpret: as for `call_forward`.
        d_out: gradient of the result, [B, N, H D].
        log_sums: from `call_forward`.

    Returns:
        Gradients of q (unscaled), k and v: like `parts`, or with several groups three arrays
        [B, H D, N]; with a gate, also the sums over the images of dA, transposed and padded,
        float32 [H, keys, lanes], and of r, float32 [groups, group, 1, lanes]; otherwise None.
    """
    batch, dtype = parts[0].shape[0], parts[0].dtype
    width = blocks.heads * blocks.channels
    d_widths = [part.shape[-1] for part in parts] if blocks.groups == 1 else [width] * 3
    results = [result_spec(blocks, d_width) for d_width in d_widths]
    in_specs = [tokens_spec(blocks, part.shape[-1]) for part in parts]
    in_specs += [tokens_spec(blocks, width), log_sums_spec(blocks)]
    operands = [*parts, d_out, log_sums]
    out_specs = [spec for spec, _ in results]
    out_shape = [jax.ShapeDtypeStruct((batch, *shape), dtype) for _, shape in results]
    if gating is not None:
        positional, gate = gating
        in_specs = [pl.BlockSpec(memory_space=pltpu.SMEM), *in_specs, heads_spec(blocks)]
        operands = [gate, *operands, positional]
        # Each core sums over its own images.
        maps, row = (blocks.group, blocks.tokens, blocks.lanes), (1, blocks.group, 1, blocks.lanes)
        for shape, count in ((maps, blocks.heads), (row, blocks.groups)):
            out_specs.append(_sum_spec(shape))
            out_shape.append(jax.ShapeDtypeStruct((blocks.cores, count, *shape[1:]), jnp.float32))
    # Sums over several tiles of queries stay float32 until they are complete.
    sum_dtype = dtype if len(blocks.tiles) == 1 else jnp.float32
    gradients = pl.pallas_call(
        functools.partial(_kernel, blocks, len(parts), gating is not None),
        name="attention_backward",
        grid=blocks.grid(batch),
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=out_shape,
        scratch_shapes=[
            pltpu.VMEM((blocks.images, 3 * blocks.rows, blocks.lanes), dtype),
            pltpu.VMEM((blocks.images, blocks.rows, blocks.lanes), dtype),
            pltpu.VMEM((blocks.images, 3 * blocks.rows, blocks.lanes), sum_dtype),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=memory
        ),
        interpret=interpret,
    )(*operands)
    d_parts = list(gradients[: len(d_widths)])
    if gating is None:
        return d_parts, None, None
    d_maps, row_sums = (jnp.sum(sums, axis=0) for sums in gradients[len(d_widths) :])
    return d_parts, d_maps, row_sums


def _sum_spec(shape: tuple[int, ...]) -> pl.BlockSpec:
    """Spec of a sum over a core's images for a group of heads, `shape`: [cores, heads, ...]."""
    others = (0,) * (len(shape) - 1)
    return pl.BlockSpec((None, *shape), lambda group, core, _: (core, group, *others))
