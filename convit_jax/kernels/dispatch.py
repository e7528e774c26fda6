"""Which form of attention is computed: XLA's, the fused kernel on TPUs, or cuDNN's on GPUs.

The choice is made while a program is traced. Call `compiled_for` when compiling for a mesh; without
it the kernel is used on a machine with a single TPU core only, since it cannot know how its arrays
would be spread. (XLA knows by itself how cuDNN's operations are.)
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

from convit_jax.errors import InputError
from convit_jax.kernels.attention import one_product, two_products
from convit_jax.kernels.cudnn import HOPPER, cudnn_attention, refusal
from convit_jax.kernels.fused import Target, fused_attention

log = logging.getLogger(__name__)

FORMS = ("auto", "xla", "pallas", "cudnn")

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
        form: "auto", the fused kernel on TPUs, cuDNN's on GPUs since Hopper and XLA's elsewhere;
            "xla"; "pallas", the kernel wherever it can do the shapes, on other platforms
            interpreted, which is slow; "cudnn"; or a function instead.
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

    Raises:
        InputError: the form asked for cannot be had on the platform or for the shapes.
    """
    batch, tokens, _ = parts[0].shape
    channels = sum(part.shape[-1] for part in parts) // (3 * heads)
    target = _target()
    blocks = target and target.blocks(batch, tokens, heads, channels, parts[0].dtype)
    by_cudnn = _goes_to_cudnn(parts[0].dtype, channels, tokens, outputs or tokens)
    name = "the fused kernel" if blocks else "cuDNN's form" if by_cudnn else "XLA's form"
    _say(name, batch, tokens, heads, channels)
    if blocks is not None:
        # Computing all outputs costs less than cutting the heads apart for a few.
        return fused_attention(target, heads, tuple(parts), positional, gate)[:, :outputs]
    q, k, v = (
        part.reshape(batch, tokens, -1, heads, channels)[:, :, n]
        for part in parts
        for n in range(part.shape[-1] // (heads * channels))
    )
    positional = None if gate is None else positional[:, :outputs]
    form = cudnn_attention if by_cudnn else _xla_form()
    out = form(q[:, :outputs], k, v, positional, gate)
    return out.reshape(*out.shape[:2], -1)


def wants_separate_parts() -> bool:
    """Whether queries, keys and values are best made by a product each.

    On a GPU the fused operation reads whole arrays: parts of one would be copied first. A TPU's
    kernel takes the parts of a joint product as they lie.
    """
    return _hardware().platform in ("cuda", "rocm")


def check_form(form: Form, device: jax.Device, dtype: Any, channels: int, tokens: int) -> None:
    """Refuses a form that a device cannot have, before anything is traced.

    Args:
        form: one of `FORMS`, or a function.
        device: one of those that are compiled for.
        dtype: of the arithmetic.
        channels: of a head.
        tokens: of most layers.

    Raises:
        InputError: it cannot; which can is in the sentence.
    """
    if form != "cudnn":
        return
    hardware = _Hardware.of(device)
    why = refusal(hardware.platform, hardware.capability, dtype, channels, tokens)
    if why:
        others = "auto, xla or pallas" if hardware.platform == "tpu" else "auto or xla"
        raise InputError(f"config.attention=cudnn: {why}; expected {others}")


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


@dataclasses.dataclass(frozen=True)
class _Hardware:
    """What a program is compiled for.

    Attributes:
        platform: "cpu", "tpu", "cuda" or "rocm"; "any" for a form that runs anywhere.
        capability: of a CUDA GPU; (9, 0) for a Hopper.
    """

    platform: str
    capability: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, device: jax.Device) -> "_Hardware":
        if device.platform != "gpu":
            return cls(device.platform)
        if "cuda" not in device.client.platform_version:
            return cls("rocm")
        major, _, minor = device.compute_capability.partition(".")
        return cls("cuda", (int(major), int(minor)))


def _hardware() -> _Hardware:
    """What is traced now is compiled for; where nobody has said so, the device arrays lie on."""
    place = _place.get()
    if place is None:
        # Asked only now: importing the package starts no backend.
        return _Hardware.of(jax.config.jax_default_device or jax.devices()[0])
    return _Hardware("any") if place.mesh is None else _Hardware.of(place.mesh.devices.flat[0])


def _goes_to_cudnn(dtype: Any, channels: int, tokens: int, queries: int) -> bool:
    """Whether cuDNN computes such attention.

    Raises:
        InputError: it was asked for, and cannot.
    """
    place, hardware = _place.get(), _hardware()
    form = "auto" if place is None else place.form
    if form not in ("auto", "cudnn"):
        return False
    why = refusal(hardware.platform, hardware.capability, dtype, channels, tokens)
    if form == "cudnn" and why:
        raise InputError(f"config.attention=cudnn: {why}")
    # A single query's result is not a number there. What was not measured must be asked for.
    measured = form == "cudnn" or hardware.capability >= HOPPER
    return why is None and measured and queries == tokens > 1


def _xla_form() -> Callable[..., jax.Array]:
    """XLA's form, as it is fastest on the platform that is compiled for (docs/performance.md)."""
    place = _place.get()
    if place is not None and callable(place.form):
        return place.form
    return two_products if _hardware().platform in ("cpu", "any") else one_product


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
def _say(form: str, batch: Any, tokens: int, heads: int, channels: int) -> None:
    """Logs a choice, once for each shape; an exported program's batch is a symbol."""
    log.info(
        "attention of %s x %s tokens, %s heads of %s: %s", batch, tokens, heads, channels, form
    )
