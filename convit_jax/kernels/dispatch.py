"""Which form of attention is computed: XLA's, or the fused kernel where there is a TPU.

The choice is made while a program is traced. Who compiles for a mesh says so by `compiled_for`;
without that the kernel is used on a machine with a single TPU core only, since it cannot know how
its arrays would be spread.
"""

import contextlib
import contextvars
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from convit_jax.kernels.attention import one_product, two_products
from convit_jax.kernels.fused import Target, fused_attention

log = logging.getLogger(__name__)

FORMS = ("auto", "xla", "pallas")

# One of `FORMS`, or to compare with, a function (q, k, v, positional, gate) → [B, N, H, D] to take
# the place of XLA's form; positional and gate are None for plain attention.
Form = str | Callable[..., jax.Array]

# Fast memory of a TPU core by the name of its kind, as JAX has it (pallas/mosaic/tpu_info.py).
_MIB = 2**20
_FAST_MEMORY = {
    "TPU v4": 16 * _MIB,
    "TPU v5 lite": 128 * _MIB,
    "TPU v5e": 128 * _MIB,
    "TPU v5": 64 * _MIB,
    "TPU v5p": 64 * _MIB,
    "TPU v6 lite": 128 * _MIB,
    "TPU v6e": 128 * _MIB,
}


@dataclasses.dataclass(frozen=True)
class _Place:
    """What `compiled_for` was told."""

    mesh: Mesh | None
    axes: tuple[str, ...]
    form: Form


_place: contextvars.ContextVar[_Place | None] = contextvars.ContextVar("place", default=None)


@contextlib.contextmanager
def compiled_for(
    mesh: Mesh | None, axes: Sequence[str] = (), form: Form = "auto"
) -> Iterator[None]:
    """What is traced inside is compiled for a mesh.

    Args:
        mesh: the devices; None for any, with a form that runs anywhere.
        axes: of the mesh, along which batches are spread.
        form: "auto", the fused kernel on TPUs and XLA's form elsewhere; "xla"; or "pallas", the
            kernel wherever it can do the shapes, on other platforms interpreted, which is slow; or
            a function instead.
    """
    token = _place.set(_Place(mesh, tuple(axes), form))
    try:
        yield
    finally:
        _place.reset(token)


def traced_for(
    function: Callable[..., Any], mesh: Mesh, axes: Sequence[str], form: Form = "auto"
) -> Callable[..., Any]:
    """The function, traced as `compiled_for` has it: to be jitted for the mesh."""

    @functools.wraps(function)
    def traced(*arguments: Any) -> Any:
        with compiled_for(mesh, axes, form):
            return function(*arguments)

    return traced


def self_attention(
    parts: Sequence[jax.Array],
    heads: int,
    positional: jax.Array | None = None,
    gate: jax.Array | None = None,
    *,
    outputs: int | None = None,
) -> jax.Array:
    """Attention of tokens to each other, gated (paper Eq. 7) or plain (Eq. 1).

    Args:
        parts: queries, keys and values as their projections make them: arrays [B, N, ...], each of
            one or more of the three, that side by side are [B, N, 3 H D].
        heads: H.
        positional: [H, N, N], attention by position, every row summing to one; None for plain
            attention.
        gate: [H], σ(λ) in [0, 1]; None for plain attention.
        outputs: how many tokens, from the first, to compute the output of; None for all.

    Returns:
        [B, N or `outputs`, H D], of the parts' type.
    """
    batch, tokens, _ = parts[0].shape
    channels = sum(part.shape[-1] for part in parts) // (3 * heads)
    target = _target()
    blocks = target and target.blocks(batch, tokens, heads, channels, parts[0].dtype)
    _say(blocks is not None, batch, tokens, heads, channels)
    if blocks is not None:
        # Computing all outputs costs less than cutting the heads apart for a few.
        return fused_attention(target, heads, tuple(parts), positional, gate)[:, :outputs]
    q, k, v = (
        part.reshape(batch, tokens, -1, heads, channels)[:, :, n]
        for part in parts
        for n in range(part.shape[-1] // (heads * channels))
    )
    positional = None if gate is None else positional[:, :outputs]
    found = _xla_form()(q[:, :outputs], k, v, positional, gate)
    return found.reshape(*found.shape[:2], -1)


def gated_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, positional: jax.Array, gate: jax.Array
) -> jax.Array:
    """((1 - gate) softmax(q kᵀ / √D) + gate · positional) v (paper Eq. 6 and 7).

    Args:
        q, k, v: [B, N, H, D]; there may be fewer queries than keys.
        positional: [H, N, N], attention by position; every row sums to one.
        gate: [H], σ(λ) in [0, 1]; 1 is attention by position alone.

    Returns:
        [B, N, H, D], of v's type.
    """
    if q.shape != k.shape or not q.dtype == k.dtype == v.dtype:
        return _xla_form()(q, k, v, positional, gate)
    return self_attention(_flat(q, k, v), q.shape[2], positional, gate).reshape(q.shape)


def softmax_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q kᵀ / √D) v (paper Eq. 1): [B, N, H, D] thrice → [B, N, H, D], of v's type."""
    if q.shape != k.shape or not q.dtype == k.dtype == v.dtype:
        return _xla_form()(q, k, v, None, None)
    return self_attention(_flat(q, k, v), q.shape[2]).reshape(q.shape)


def _flat(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """[B, N, H, D] → [B, N, H D]."""
    return tuple(array.reshape(*array.shape[:2], -1) for array in arrays)


def _xla_form() -> Callable[..., jax.Array]:
    """XLA's form, as it is fastest on the platform that is compiled for (docs/performance.md)."""
    place = _place.get()
    if place is None:
        platform = jax.default_backend()
    elif callable(place.form):
        return place.form
    else:
        platform = place.mesh and place.mesh.devices.flat[0].platform
    return one_product if platform == "tpu" else two_products


def _target() -> Target | None:
    """What the kernel would be compiled for, or None for XLA's form."""
    place = _place.get()
    if place is None:
        # Asked only now: importing the package starts no backend.
        if jax.default_backend() != "tpu" or jax.device_count() > 1:
            return None
        place = _Place(Mesh(np.array(jax.devices()), ("data",)), ("data",), "auto")
    if place.mesh is None or place.form not in ("auto", "pallas"):
        return None
    device = place.mesh.devices.flat[0]
    on_tpu = device.platform == "tpu"
    if place.form == "auto" and not on_tpu:
        return None
    memory = _FAST_MEMORY.get(device.device_kind, min(_FAST_MEMORY.values()))
    spread = place.mesh.size > 1
    return Target(
        memory=memory,
        mesh=place.mesh if spread else None,
        axes=place.axes if spread else (),
        interpret=not on_tpu,
    )


@functools.cache
def _say(fused: bool, batch: Any, tokens: int, heads: int, channels: int) -> None:
    """Logs a choice, once for each shape; an exported program's batch is a symbol."""
    form = "the fused kernel" if fused else "XLA's form"
    log.info(
        "attention of %s x %s tokens, %s heads of %s: %s", batch, tokens, heads, channels, form
    )
