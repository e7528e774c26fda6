"""The choice of the attention implementation: XLA, a fused TPU kernel, or cuDNN.

A model is built with an `Attention`, which `attention_for` returns for the devices that the model
will be compiled for.
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
from convit_jax.kernels.cudnn import HOPPER, cudnn_attention, unsupported_reason
from convit_jax.kernels.fused import Target, fused_attention
from convit_jax.system.devices import platform_of

log = logging.getLogger(__name__)

FORMS = ("auto", "xla", "pallas", "cudnn")

# One of `FORMS`, or, for comparisons, a function (q, k, v, positional, gate) → [B, N, H, D] that
# replaces XLA's form; positional and gate are None for plain attention. Vanilla positional
# self-attention passes it positional_scores=… too.
Form = str | Callable[..., jax.Array]

# VMEM of a TPU core by `device_kind`, as in JAX's pallas/mosaic/tpu_info.py.
_MIB = 2**20
_VMEM = {
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
    """The hardware that a program is compiled for.

    Attributes:
        platform: "cpu", "tpu", "cuda" or "rocm"; "any" for a form that runs on all of them.
        capability: compute capability of a CUDA GPU; (9, 0) for Hopper.
    """

    platform: str
    capability: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, device: jax.Device) -> "_Hardware":
        platform = platform_of(device)
        if platform != "cuda":
            return cls(platform)
        major, _, minor = device.compute_capability.partition(".")
        return cls("cuda", (int(major), int(minor)))


@dataclasses.dataclass(frozen=True)
class Attention:
    """Self-attention, computed by the implementation that suits the devices.

    Attributes:
        form: one of `FORMS`, or a function instead of XLA's form.
        mesh: the devices that programs are compiled for, with batches sharded along all of its
            axes. None means: with "auto", the default device when a program is traced, where the
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
        positional_scores: jax.Array | None = None,
        num_outputs: int | None = None,
    ) -> jax.Array:
        """Gated positional self-attention (paper Eq. 7), vanilla (Eq. 4) or plain (Eq. 1).

        Vanilla positional self-attention has XLA's form on all platforms.

        Args:
            parts: queries, keys and values as returned by their projections: arrays [B, N, ...] of
                one or more of the three, whose concatenation is [B, N, 3 H D].
            num_heads: H.
            positional: [H, N, N], positional attention, whose rows sum to one; None for plain
                attention.
            gate: [H], σ(λ) in [0, 1]; None for plain attention.
            positional_scores: [H, N, N], added to the scores before the softmax, without a gate
                (vanilla); or None.
            num_outputs: compute the outputs of the first `num_outputs` tokens only; None for all.

        Returns:
            [B, N or `num_outputs`, H D], of the parts' type.

        Raises:
            InputError: the form does not support the platform or the shapes.
        """
        batch, tokens, _ = parts[0].shape
        head_dim = sum(part.shape[-1] for part in parts) // (3 * num_heads)
        only_xla = positional_scores is not None
        target = None if only_xla else self._kernel_target()
        blocks = target and target.blocks(batch, tokens, num_heads, head_dim, parts[0].dtype)
        queries = num_outputs or tokens
        use_cudnn = not only_xla and self._uses_cudnn(parts[0].dtype, head_dim, tokens, queries)
        name = "the fused kernel" if blocks else "cuDNN's form" if use_cudnn else "XLA's form"
        if num_outputs is None:  # a single query may have another form, in the last layer alone
            _log_choice(name)
        if blocks is not None:
            # Computing all outputs costs less than separating the heads for a few.
            out = fused_attention(target, num_heads, tuple(parts), positional, gate)
            return out[:, :num_outputs]
        q, k, v = (
            part.reshape(batch, tokens, -1, num_heads, head_dim)[:, :, n]
            for part in parts
            for n in range(part.shape[-1] // (num_heads * head_dim))
        )
        if positional is not None:
            positional = positional[:, :num_outputs]
        compute: Callable[..., jax.Array] = cudnn_attention if use_cudnn else self._xla_form()
        if positional_scores is not None:
            scores = positional_scores[:, :num_outputs]
            compute = functools.partial(compute, positional_scores=scores)
        out = compute(q[:, :num_outputs], k, v, positional, gate)
        return out.reshape(*out.shape[:2], -1)

    def check(self, dtype: Any, head_dim: int, tokens: int) -> None:
        """Check that the devices support the form, before anything is traced.

        Args:
            dtype: of the arithmetic.
            head_dim: channels per head.
            tokens: number of tokens in most layers.

        Raises:
            InputError: the form is not supported; the message lists those that are.
        """
        if self.form != "cudnn":
            return
        hardware = self._hardware()
        reason = unsupported_reason(hardware.platform, hardware.capability, dtype, head_dim, tokens)
        if reason:
            others = "auto, xla or pallas" if hardware.platform == "tpu" else "auto or xla"
            raise InputError(f"config.attention=cudnn: {reason}; expected {others}")

    @property
    def separate_projections(self) -> bool:
        """Whether queries, keys and values are best computed by separate matrix products.

        On a GPU the fused operation reads whole arrays: slices of one would be copied first. The
        TPU kernel reads the parts of a joint product in place.
        """
        return self._hardware().platform in ("cuda", "rocm")

    def _hardware(self) -> _Hardware:
        if self.mesh is not None:
            return _Hardware.of(self.mesh.devices.flat[0])
        if self.form != "auto":
            return _Hardware("any")
        # Called only when a program is traced: importing the package starts no backend.
        device = jax.config.jax_default_device  # type: ignore[attr-defined]  # defined at run time
        if isinstance(device, str | None):  # JAX accepts a platform's name as well
            device = jax.devices(device)[0]
        return _Hardware.of(device)

    def _uses_cudnn(self, dtype: Any, head_dim: int, tokens: int, queries: int) -> bool:
        """Whether to compute this attention with cuDNN.

        Raises:
            InputError: cuDNN was requested explicitly and does not support it.
        """
        if self.form not in ("auto", "cudnn"):
            return False
        hardware = self._hardware()
        reason = unsupported_reason(hardware.platform, hardware.capability, dtype, head_dim, tokens)
        if self.form == "cudnn" and reason:
            raise InputError(f"config.attention=cudnn: {reason}")
        # cuDNN returns NaN for a single query. GPUs on which it was not measured use it only on
        # explicit request.
        measured = self.form == "cudnn" or hardware.capability >= HOPPER
        return reason is None and measured and queries == tokens > 1

    def _xla_form(self) -> Callable[..., jax.Array]:
        """Return the formulation that is fastest with XLA on the platform (docs/performance.md)."""
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
            memory=_VMEM.get(device.device_kind, min(_VMEM.values())),
            cores=device.num_cores if on_tpu else 1,
            mesh=mesh if mesh.size > 1 else None,
            axes=mesh.axis_names if mesh.size > 1 else (),
            interpret=not on_tpu,
        )


# For models that are not compiled for a mesh.
DEFAULT_ATTENTION = Attention()


def attention_for(mesh: Mesh | None = None, form: Form = "auto") -> Attention:
    """Return the attention for models that are compiled for a mesh.

    Args:
        mesh: the devices, with batches sharded along all of its axes; None as in `Attention`.
        form: "auto": the fused kernel on TPUs, cuDNN on GPUs since Hopper, XLA elsewhere;
            "xla"; "pallas": the fused kernel for all shapes that it supports, interpreted (slowly)
            on other platforms than TPU; "cudnn"; or a function instead of XLA's form.
    """
    return Attention(form, mesh)


@functools.cache
def _log_choice(form: str) -> None:
    """Log each form that is used, once."""
    log.info("attention is computed by %s", form)
