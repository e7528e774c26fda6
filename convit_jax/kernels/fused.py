"""Fused attention, whose score maps never leave a TPU core's VMEM, as a differentiable function.

Queries, keys and values are passed as their projections return them: arrays [B, N, ...] whose
concatenation is [B, N, 3 H D], one for plain attention, two for GPSA. So nothing is split or copied
before the kernel, and the gradients are passed straight back to the projections.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from convit_jax.kernels.blocks import Blocks, fitting_blocks
from convit_jax.kernels.fused_backward import call_backward
from convit_jax.kernels.fused_forward import call_forward


@dataclasses.dataclass(frozen=True)
class Target:
    """The devices that kernels are compiled for.

    Attributes:
        memory: bytes of a core's VMEM.
        cores: cores of a chip that run one program together, as on v4 and v5p.
        mesh: devices over which the batch is sharded, or None for one device.
        axes: the mesh axes along which it is sharded.
        interpret: run in Pallas's interpreter, on any platform and slowly, for tests.
    """

    memory: int
    cores: int = 1
    mesh: Mesh | None = None
    axes: tuple[str, ...] = ()
    interpret: bool = False

    @property
    def shards(self) -> int:
        """Number of devices over which a batch is sharded."""
        return math.prod(self.mesh.shape[axis] for axis in self.axes) if self.mesh else 1

    def blocks(
        self, batch: int, tokens: int, heads: int, channels: int, dtype: Any
    ) -> Blocks | None:
        """Return the block sizes for these inputs, or None if the kernel does not support them."""
        if batch % self.shards:
            return None
        local_batch = batch // self.shards
        return fitting_blocks(
            local_batch, tokens, heads, channels, jnp.dtype(dtype), self.memory, self.cores
        )

    def shard_map(
        self, function: Callable[..., Any], in_batched: Any, out_batched: Any
    ) -> Callable[..., Any]:
        """Return `function`, run on each device's shard of the batch.

        Args:
            function: maps arrays to arrays, each either sharded along the batch or replicated.
            in_batched: for each argument, whether it is sharded.
            out_batched: likewise for the results.
        """
        if self.mesh is None:
            return function
        sharded, replicated = PartitionSpec(self.axes), PartitionSpec()
        specs = functools.partial(jax.tree.map, lambda batched: sharded if batched else replicated)
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=specs(in_batched),
            out_specs=specs(out_batched),
            check_vma=False,
        )

    def all_reduce(self, x: jax.Array) -> jax.Array:
        """Return the sum over the devices, within `shard_map`."""
        return jax.lax.psum(x, self.axes) if self.mesh else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def fused_attention(
    target: Target,
    heads: int,
    parts: tuple[jax.Array, ...],
    positional: jax.Array | None,
    gate: jax.Array | None,
) -> jax.Array:
    """((1 - gate) softmax(q kᵀ / √D) + gate · positional) v (paper Eq. 6 and 7), by the kernels.

    Args:
        target: the devices to compile for; `target.blocks` is not None for these shapes.
        heads: H.
        parts: queries, keys and values, concatenated into one, two or three arrays [B, N, ...].
        positional: [H, N, N], or None for plain attention.
        gate: [H], or None.

    Returns:
        [B, N, H D], of the parts' type.
    """
    return _forward(target, heads, parts, positional, gate)[0]


def _blocks(target: Target, heads: int, parts: Sequence[jax.Array]) -> Blocks:
    batch, tokens, _ = parts[0].shape
    channels = sum(part.shape[-1] for part in parts) // (3 * heads)
    blocks = target.blocks(batch, tokens, heads, channels, parts[0].dtype)
    if blocks is None:
        raise ValueError(f"no attention kernel for {batch} x {tokens} x {heads} x {channels}")
    return blocks


def _with_scaled_queries(blocks: Blocks, parts: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """Multiply the queries by log2(e) / √D: the kernels' exponentials are powers of two."""
    width = blocks.heads * blocks.channels
    scale = jnp.where(
        jnp.arange(parts[0].shape[-1]) < width, math.log2(math.e) * blocks.channels**-0.5, 1.0
    )
    return ((parts[0] * scale).astype(parts[0].dtype), *parts[1:])


def _transposed(blocks: Blocks, maps: jax.Array) -> jax.Array:
    """[H, queries, keys] → [H, keys, lanes], padded."""
    padding = ((0, 0), (0, 0), (0, blocks.lanes - blocks.tokens))
    return jnp.pad(maps.transpose(0, 2, 1), padding)


def _gating(
    blocks: Blocks, positional: jax.Array | None, gate: jax.Array | None
) -> tuple[jax.Array, jax.Array] | None:
    """gate · positional and the gate as the kernels take them, or None."""
    if gate is None:
        return None
    assert positional is not None  # given together with the gate
    gate = gate.astype(jnp.float32)
    return _transposed(blocks, gate[:, None, None] * positional), gate


def _token_major(blocks: Blocks, x: jax.Array) -> jax.Array:
    """Return a kernel's result, with several groups [B, H D, N], as [B, N, H D]."""
    return x if blocks.groups == 1 else x.transpose(0, 2, 1)


def _forward(
    target: Target,
    heads: int,
    parts: tuple[jax.Array, ...],
    positional: jax.Array | None,
    gate: jax.Array | None,
) -> tuple[jax.Array, Any]:
    blocks = _blocks(target, heads, parts)
    scaled, gating = _with_scaled_queries(blocks, parts), _gating(blocks, positional, gate)

    def run(parts: Any, gating: Any) -> tuple[jax.Array, jax.Array]:
        return call_forward(blocks, parts, gating, memory=target.memory, interpret=target.interpret)

    replicated = None if gating is None else (False, False)
    in_batched = ((True,) * len(parts), replicated)
    out, log_sums = target.shard_map(run, in_batched, (True, True))(scaled, gating)
    return _token_major(blocks, out), (scaled, log_sums, positional, gate)


def _backward(target: Target, heads: int, saved: Any, d_out: jax.Array) -> tuple[Any, Any, Any]:
    parts, log_sums, positional, gate = saved
    blocks = _blocks(target, heads, parts)
    gating = _gating(blocks, positional, gate)

    def run(parts: Any, d_out: Any, log_sums: Any, gating: Any) -> Any:
        d_parts, d_maps, row_sums = call_backward(
            blocks, parts, d_out, log_sums, gating,
            memory=target.memory, interpret=target.interpret,
        )  # fmt: skip
        return d_parts, jax.tree.map(target.all_reduce, (d_maps, row_sums))

    replicated = None if gating is None else (False, False)
    num_gradients = len(parts) if blocks.groups == 1 else 3
    in_batched = ((True,) * len(parts), True, True, replicated)
    out_batched = ([True] * num_gradients, replicated or (None, None))
    d_parts, (d_maps, row_sums) = target.shard_map(run, in_batched, out_batched)(
        parts, d_out, log_sums, gating
    )
    if blocks.groups > 1:
        joined = jnp.concatenate([_token_major(blocks, d) for d in d_parts], axis=-1)
        boundaries = [sum(part.shape[-1] for part in parts[:n]) for n in range(1, len(parts))]
        d_parts = jnp.split(joined, boundaries, axis=-1)
    if gate is None:
        return tuple(d_parts), None, None
    # With A the mixture and r as in `fused_backward`: dg = Σ dA T - Σ r, dT = g Σ dA.
    d_mixture = d_maps[:, :, : blocks.tokens].transpose(0, 2, 1)
    d_gate = jnp.sum(d_mixture * positional, axis=(1, 2)) - row_sums.sum(-1).reshape(heads)
    d_positional = gate.astype(jnp.float32)[:, None, None] * d_mixture
    return tuple(d_parts), d_positional.astype(positional.dtype), d_gate.astype(gate.dtype)


fused_attention.defvjp(_forward, _backward)
