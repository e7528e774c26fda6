"""Attention whose score maps never leave a TPU core's fast memory, as a differentiable function.

Queries, keys and values come as they leave their projections: some arrays [B, N, ...] that side by
side are [B, N, 3 H D], one for plain attention, two for GPSA. So nothing is cut up or moved before
the kernel, and the gradients go straight back into the projections.
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
    """What kernels are compiled for.

    Attributes:
        memory: bytes of a core's fast memory.
        mesh: devices among which the batch is spread, or None for one device.
        axes: of the mesh, along which it is.
        interpret: run on any platform, slowly, for tests.
    """

    memory: int
    mesh: Mesh | None = None
    axes: tuple[str, ...] = ()
    interpret: bool = False

    @property
    def shards(self) -> int:
        """Devices among which a batch is spread."""
        return math.prod(self.mesh.shape[axis] for axis in self.axes) if self.mesh else 1

    def blocks(
        self, batch: int, tokens: int, heads: int, channels: int, dtype: Any
    ) -> Blocks | None:
        """How the kernel would cut up such inputs, or None if it cannot."""
        if batch % self.shards:
            return None
        return fitting_blocks(
            batch // self.shards, tokens, heads, channels, jnp.dtype(dtype), self.memory
        )

    def spread(
        self, function: Callable[..., Any], batched: Any, results: Any
    ) -> Callable[..., Any]:
        """`function` on every device's own rows.

        Args:
            function: of arrays, whole or cut along the batch.
            batched: for each argument, whether it is cut.
            results: likewise for the results.
        """
        if self.mesh is None:
            return function
        rows, whole = PartitionSpec(self.axes), PartitionSpec()
        specs = functools.partial(jax.tree.map, lambda cut: rows if cut else whole)
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=specs(batched),
            out_specs=specs(results),
            check_vma=False,
        )

    def add_up(self, x: jax.Array) -> jax.Array:
        """The sum over the devices; within `spread`."""
        return jax.lax.psum(x, self.axes) if self.mesh else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def fused_attention(
    target: Target,
    heads: int,
    parts: tuple[jax.Array, ...],
    positional: jax.Array | None,
    gate: jax.Array | None,
) -> jax.Array:
    """((1 - gate) softmax(q kᵀ / √D) + gate · positional) v (paper Eq. 6 and 7), by the kernel.

    Args:
        target: what it is compiled for; its `blocks` are not None for these shapes.
        heads: H.
        parts: queries, keys and values side by side in one, two or three arrays [B, N, ...].
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
    """The parts with queries times log2(e) / √D: the kernels' exponentials are powers of two."""
    width = blocks.heads * blocks.channels
    scale = jnp.where(
        jnp.arange(parts[0].shape[-1]) < width, math.log2(math.e) * blocks.channels**-0.5, 1.0
    )
    return ((parts[0] * scale).astype(parts[0].dtype), *parts[1:])


def _turned(blocks: Blocks, maps: jax.Array) -> jax.Array:
    """[H, queries, keys] → [H, keys, lanes], padded."""
    padding = ((0, 0), (0, 0), (0, blocks.lanes - blocks.tokens))
    return jnp.pad(maps.transpose(0, 2, 1), padding)


def _weighted(blocks: Blocks, positional: jax.Array | None, gate: jax.Array | None) -> Any:
    """Gate · positional as the kernels take it, or None."""
    if gate is None:
        return None
    return _turned(blocks, gate.astype(jnp.float32)[:, None, None] * positional)


def _as_float32(gate: jax.Array | None) -> jax.Array | None:
    return None if gate is None else gate.astype(jnp.float32)


def _token_major(blocks: Blocks, x: jax.Array) -> jax.Array:
    """What a kernel of several groups wrote, [B, H D, N], as [B, N, H D]."""
    return x if blocks.groups == 1 else x.transpose(0, 2, 1)


def _forward(
    target: Target,
    heads: int,
    parts: tuple[jax.Array, ...],
    positional: jax.Array | None,
    gate: jax.Array | None,
) -> tuple[jax.Array, Any]:
    blocks = _blocks(target, heads, parts)
    scaled = _with_scaled_queries(blocks, parts)

    def run(parts: Any, by_position: Any, gate: Any) -> tuple[jax.Array, jax.Array]:
        return call_forward(
            blocks, parts, by_position, gate, memory=target.memory, interpret=target.interpret
        )

    whole = None if gate is None else False
    out, log_sums = target.spread(run, ((True,) * len(parts), whole, whole), (True, True))(
        scaled, _weighted(blocks, positional, gate), _as_float32(gate)
    )
    return _token_major(blocks, out), (scaled, log_sums, positional, gate)


def _backward(target: Target, heads: int, saved: Any, d_out: jax.Array) -> tuple[Any, Any, Any]:
    parts, log_sums, positional, gate = saved
    blocks = _blocks(target, heads, parts)

    def run(parts: Any, d_out: Any, log_sums: Any, by_position: Any, gate: Any) -> Any:
        d_parts, d_maps, content = call_backward(
            blocks, parts, d_out, log_sums, by_position, gate,
            memory=target.memory, interpret=target.interpret,
        )  # fmt: skip
        return d_parts, *(x if x is None else target.add_up(x) for x in (d_maps, content))

    whole = None if gate is None else False
    count = len(parts) if blocks.groups == 1 else 3
    d_parts, d_maps, content = target.spread(
        run, ((True,) * len(parts), True, True, whole, whole), ([True] * count, whole, whole)
    )(parts, d_out, log_sums, _weighted(blocks, positional, gate), _as_float32(gate))
    if blocks.groups > 1:
        together = jnp.concatenate([_token_major(blocks, d) for d in d_parts], axis=-1)
        cuts = [sum(part.shape[-1] for part in parts[:n]) for n in range(1, len(parts))]
        d_parts = jnp.split(together, cuts, axis=-1)
    if gate is None:
        return tuple(d_parts), None, None
    d_mixture = d_maps[:, :, : blocks.tokens].transpose(0, 2, 1)
    by_position = jnp.sum(d_mixture * positional, axis=(1, 2))
    d_gate = by_position - content.sum(-1).reshape(heads)
    d_positional = gate.astype(jnp.float32)[:, None, None] * d_mixture
    return tuple(d_parts), d_positional.astype(positional.dtype), d_gate.astype(gate.dtype)


fused_attention.defvjp(_forward, _backward)
