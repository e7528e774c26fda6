"""Forms of attention to compare, and the time of an attention layer in each."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from convit_jax import kernels, models
from convit_jax.benchmarks.timing import best_time
from convit_jax.errors import InputError
from convit_jax.kernels.attention import one_product, two_products
from convit_jax.models.block import attention_layer


def released_formula(
    q: jax.Array, k: jax.Array, v: jax.Array, positional: jax.Array | None, gate: jax.Array | None
) -> jax.Array:
    """Compute attention as the released code does: maps mixed per image, normalised, one product.

    Arguments and result are those of `two_products`.
    """
    content = kernels.attention_map(q, k)
    if gate is None or positional is None:
        return jnp.einsum("bhnm,bmhd->bnhd", content.astype(v.dtype), v)
    gate = gate[None, :, None, None]
    # Without the barrier the compiler would exploit that all images have the same positional map.
    expanded = jnp.broadcast_to(positional[None], content.shape)
    mixed = (1.0 - gate) * content + gate * jax.lax.optimization_barrier(expanded)
    mixed /= mixed.sum(-1, keepdims=True)
    return jnp.einsum("bhnm,bmhd->bnhd", mixed.astype(v.dtype), v)


def no_products(
    q: jax.Array, k: jax.Array, v: jax.Array, positional: jax.Array | None, gate: jax.Array | None
) -> jax.Array:
    """Replace attention by elementwise sums, to measure the cost of the rest of the step.

    Arguments and result are those of `two_products`.
    """
    num_queries = q.shape[1]
    offset = 0.0 if gate is None or positional is None else gate.sum() * positional[0, 0, 0]
    return (v[:, :num_queries] + q * k[:, :num_queries] + offset).astype(v.dtype)


# Name → the form, as passed to `attention_for`, and whether attention is gated (else plain).
FORMS: dict[str, tuple[kernels.Form, bool]] = {
    "released formula": (released_formula, True),
    "two products, as on CPUs": (two_products, True),
    "one product, as on TPUs": (one_product, True),
    "fused kernel": ("pallas", True),
    "cuDNN": ("cudnn", True),
    "plain attention, two products": (two_products, False),
    "plain attention, one product": (one_product, False),
    "plain attention, fused kernel": ("pallas", False),
    "plain attention, cuDNN": ("cudnn", False),
    "no attention": (no_products, True),
}
# Forms of a single platform: on others they do not run, or only in an interpreter, which is not
# worth timing.
_PLATFORMS: dict[kernels.Form, str] = {"pallas": "tpu", "cudnn": "gpu"}


@dataclasses.dataclass(frozen=True)
class AttentionTime:
    """Times of one attention layer in one form, as reported by `benchmark attention`.

    Attributes:
        model: the layer's model.
        form: key of `FORMS`.
        forward_seconds: forward pass, projections included.
        train_seconds: forward pass and gradients of all inputs and parameters.
    """

    model: str
    form: str
    forward_seconds: float
    train_seconds: float


def measure_attention(
    model: str,
    forms: Sequence[str],
    *,
    batch_size: int,
    image_size: int,
    dtype: str,
    seconds: float,
) -> Iterator[AttentionTime]:
    """Time an attention layer in each form on this machine's device.

    A layer takes normalised tokens and returns its addition to the residual stream: projections are
    part of it, because forms may need different ones.

    Args:
        model: one of `list_models()`, a ConViT.
        forms: keys of `FORMS`; those of other platforms are skipped.
        batch_size: number of images.
        image_size: side in pixels.
        dtype: "float32" or "bfloat16".
        seconds: how long to repeat each measurement.

    Raises:
        InputError: an unknown model or image size, a form that does not support the type, or no
            form that runs on this platform.
    """
    architecture = models.architecture(model, image_size=image_size, dtype=dtype)
    device = jax.devices()[0]
    runnable = [
        name
        for name, (form, _) in FORMS.items()
        if _PLATFORMS.get(form, device.platform) == device.platform
    ]
    selected = [name for name in forms if name in runnable]
    if not selected:
        raise InputError(
            f"--forms: {', '.join(forms)} cannot be timed on this platform ({device.platform}); "
            f"expected some of {', '.join(runnable)}"
        )
    mesh = jax.make_mesh((1,), ("data",), devices=[device])
    tokens = math.prod(architecture.grid)
    x = jax.random.normal(jax.random.key(0), (batch_size, tokens, architecture.width), dtype)
    for name in selected:
        form, gated = FORMS[name]
        attend = kernels.attention_for(mesh, form)
        attend.check(jnp.dtype(dtype), architecture.head_dim, tokens)
        layer = attention_layer(architecture, attend, gpsa=gated, rngs=nnx.Rngs(0))
        yield AttentionTime(model, name, *_time_layer(layer, x, architecture.grid, seconds))


def _time_layer(
    layer: nnx.Module, x: jax.Array, grid: tuple[int, int], seconds: float
) -> tuple[float, float]:
    """Return the seconds of a layer's forward pass, and of that with its gradients."""
    graph, params = nnx.split(layer)

    def forward(params: nnx.State, x: jax.Array) -> jax.Array:
        return nnx.merge(graph, params)(x, grid)

    def loss(params: nnx.State, x: jax.Array) -> jax.Array:
        # The weights by x keep the compiler from simplifying products with constant gradients.
        return (forward(params, x) * x).astype(jnp.float32).sum()

    functions = jax.jit(forward), jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    forward_seconds, train_seconds = (
        best_time(functools.partial(function, params, x), seconds) for function in functions
    )
    return forward_seconds, train_seconds
