"""The choice of the form in which attention is computed: XLA's, a fused TPU kernel's, or cuDNN's.

A model is built with an `Attention`, which `attention_for` makes for the devices that it will be
compiled for.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
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

# One of `FORMS`, or, for comparisons, a function (q, k, v, positional, gate) → [B, N, H, D] to take
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


@dataclasses.dataclass(frozen=True)
class Attention:
    """Computes the attention of tokens to each other, in the form that suits some devices.

    Attributes:
        form: one of `FORMS`, or a function instead of XLA's form.
        mesh: the devices that programs are compiled for, batches spread along all of its axes.
            None: with "auto", whatever the default device is when a program is traced, where the
            fused kernel needs a machine with a single TPU core; otherwise any platform.
    """

    form: Form = "auto"
    mesh: Mesh | None = None

    def __call__(
        self,
        parts: Sequence[jax.Array],
        num_heads: int,
        positional: jax.Array | None = None,
        gate: jax.Array | None = None,
        *,
        outputs: int | None = None,
    ) -> jax.Array:
        """Gated positional self-attention (paper Eq. 7), or plain self-attention (Eq. 1).

        Args:
            parts: queries, keys and values as their projections return them: arrays [B, N, ...],
                each of one or more of the three, that side by side are [B, N, 3 H D].
            num_heads: H.
            positional: [H, N, N], attention by position, every row summing to one; None for plain
                attention.
            gate: [H], σ(λ) in [0, 1]; None for plain attention.
            outputs: how many tokens, from the first, to compute the output of; None for all.

        Returns:
            [B, N or `outputs`, H D], of the parts' type.

        Raises:
            InputError: the form cannot be had on the platform or for the shapes.
        """
        batch, tokens, _ = parts[0].shape
        head_dim = sum(part.shape[-1] for part in parts) // (3 * num_heads)
        target = self._kernel_target()
        blocks = target and target.blocks(batch, tokens, num_heads, head_dim, parts[0].dtype)
        by_cudnn = self._uses_cudnn(parts[0].dtype, head_dim, tokens, outputs or tokens)
        name = "the fused kernel" if blocks else "cuDNN's form" if by_cudnn else "XLA's form"
        _log_choice(name, batch, tokens, num_heads, head_dim)
        if blocks is not None:
            # Computing all outputs costs less than cutting the heads apart for a few.
            return fused_attention(target, num_heads, tuple(parts), positional, gate)[:, :outputs]
        q, k, v = (
            part.reshape(batch, tokens, -1, num_heads, head_dim)[:, :, n]
            for part in parts
            for n in range(part.shape[-1] // (num_heads * head_dim))
        )
        positional = None if gate is None else positional[:, :outputs]
        compute = cudnn_attention if by_cudnn else self._xla_form()
        out = compute(q[:, :outputs], k, v, positional, gate)
        return out.reshape(*out.shape[:2], -1)

    def check(self, dtype: Any, head_dim: int, tokens: int) -> None:
        """Refuses a form that the devices cannot have, before anything is traced.

        Args:
            dtype: of the arithmetic.
            head_dim: channels of a head.
            tokens: of most layers.

        Raises:
            InputError: they cannot; the sentence says which they can.
        """
        if self.form != "cudnn":
            return
        hardware = self._hardware()
        reason = refusal(hardware.platform, hardware.capability, dtype, head_dim, tokens)
        if reason:
            others = "auto, xla or pallas" if hardware.platform == "tpu" else "auto or xla"
            raise InputError(f"config.attention=cudnn: {reason}; expected {others}")

    @property
    def separate_projections(self) -> bool:
        """Whether queries, keys and values are best computed by a product each.

        On a GPU the fused operation reads whole arrays: slices of one would be copied first. A
        TPU's kernel takes the parts of a joint product as they lie.
        """
        return self._hardware().platform in ("cuda", "rocm")

    def _hardware(self) -> _Hardware:
        if self.mesh is not None:
            return _Hardware.of(self.mesh.devices.flat[0])
        if self.form != "auto":
            return _Hardware("any")
        # Asked only when a program is traced: importing the package starts no backend.
        return _Hardware.of(jax.config.jax_default_device or jax.devices()[0])

    def _uses_cudnn(self, dtype: Any, head_dim: int, tokens: int, queries: int) -> bool:
        """Whether cuDNN computes such attention.

        Raises:
            InputError: it was asked for, and cannot.
        """
        if self.form not in ("auto", "cudnn"):
            return False
        hardware = self._hardware()
        reason = refusal(hardware.platform, hardware.capability, dtype, head_dim, tokens)
        if self.form == "cudnn" and reason:
            raise InputError(f"config.attention=cudnn: {reason}")
        # A single query's result is not a number there. What was not measured must be asked for.
        measured = self.form == "cudnn" or hardware.capability >= HOPPER
        return reason is None and measured and queries == tokens > 1

    def _xla_form(self) -> Callable[..., jax.Array]:
        """XLA's form, as it is fastest on the platform (docs/performance.md)."""
        if callable(self.form):
            return self.form
        return two_products if self._hardware().platform in ("cpu", "any") else one_product

    def _kernel_target(self) -> Target | None:
        """What the fused kernel is compiled for, or None where it is not used."""
        mesh = self.mesh
        if mesh is None:
            if self.form != "auto" or jax.default_backend() != "tpu" or jax.device_count() > 1:
                return None
            mesh = Mesh(np.array(jax.devices()), ("data",))
        if self.form not in ("auto", "pallas"):
            return None
        device = mesh.devices.flat[0]
        on_tpu = device.platform == "tpu"
        if self.form == "auto" and not on_tpu:
            return None
        return Target(
            memory=_FAST_MEMORY.get(device.device_kind, min(_FAST_MEMORY.values())),
            mesh=mesh if mesh.size > 1 else None,
            axes=mesh.axis_names if mesh.size > 1 else (),
            interpret=not on_tpu,
        )


# For models that nobody compiles for a mesh.
DEFAULT_ATTENTION = Attention()


def attention_for(mesh: Mesh | None = None, form: Form = "auto") -> Attention:
    """The attention of models that are compiled for a mesh.

    Args:
        mesh: the devices, batches spread along all of its axes; None as in `Attention`.
        form: "auto", the fused kernel on TPUs, cuDNN's on GPUs since Hopper and XLA's elsewhere;
            "xla"; "pallas", the kernel wherever it can do the shapes, on other platforms
            interpreted, which is slow; "cudnn"; or a function instead of XLA's form.
    """
    return Attention(form, mesh)


@functools.cache
def _log_choice(form: str, batch: Any, tokens: int, num_heads: int, head_dim: int) -> None:
    """Logs a choice, once for each shape; an exported program's batch is a symbol."""
    log.info(
        "attention of %s x %s tokens, %s heads of %s: %s", batch, tokens, num_heads, head_dim, form
    )
