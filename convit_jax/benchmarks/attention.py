"""The forms of attention that are compared with each other, and a layer's time in each."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp

from convit_jax import kernels, models
from convit_jax.benchmarks.timing import fastest
from convit_jax.errors import InputError
from convit_jax.kernels.attention import one_product, two_products


def released_formula(
    q: jax.Array, k: jax.Array, v: jax.Array, positional: jax.Array | None, gate: jax.Array | None
) -> jax.Array:
    """The released code's arithmetic: a map for every image, normalised again, then one product."""
    content = kernels.attention_map(q, k)
    if gate is None:
        return jnp.einsum("bhnm,bmhd->bnhd", content.astype(v.dtype), v)
    gate = gate[None, :, None, None]
    # Without the barrier the compiler would see that every image has the same map.
    expanded = jnp.broadcast_to(positional[None], content.shape)
    mixed = (1.0 - gate) * content + gate * jax.lax.optimization_barrier(expanded)
    mixed /= mixed.sum(-1, keepdims=True)
    return jnp.einsum("bhnm,bmhd->bnhd", mixed.astype(v.dtype), v)


def no_products(
    q: jax.Array, k: jax.Array, v: jax.Array, positional: jax.Array | None, gate: jax.Array | None
) -> jax.Array:
    """No attention at all: what the rest of the step costs."""
    few = q.shape[1]
    share = 0.0 if gate is None else gate.sum() * positional[0, 0, 0]
    return (v[:, :few] + q * k[:, :few] + share).astype(v.dtype)


# Name → what `compiled_for` takes for the form, and whether attention is gated or plain.
FORMS: dict[str, tuple[str | Callable[..., jax.Array], bool]] = {
    "released formula": (released_formula, True),
    "two products, as on CPUs": (two_products, True),
    "one product, as on TPUs": (one_product, True),
    "fused kernel": ("pallas", True),
    "plain attention, two products": (two_products, False),
    "plain attention, one product": (one_product, False),
    "plain attention, fused kernel": ("pallas", False),
    "no attention": (no_products, True),
}


@dataclasses.dataclass(frozen=True)
class AttentionTime:
    """What `benchmark attention` says of a form: seconds of one layer's attention.

    Attributes:
        form: key of `FORMS`.
        forward_seconds: of the forward pass.
        train_seconds: of the forward pass and the gradients of everything that goes in.
    """

    form: str
    forward_seconds: float
    train_seconds: float


def measure_attention(
    model: str, forms: Sequence[str], *, images: int, image_size: int, dtype: str, seconds: float
) -> Iterator[AttentionTime]:
    """Times a layer's attention in each form on this machine's device.

    Args:
        model: one of `list_models()`, a ConViT.
        forms: keys of `FORMS`; the fused kernel is left out where there is no TPU: interpreted, its
            time would say nothing.
        images: at once.
        image_size: side in pixels.
        dtype: "float32" or "bfloat16".
        seconds: how long to repeat each.

    Raises:
        InputError: no such model or image size, or nothing is left to time.
    """
    made = models.architecture(model, image_size=image_size)
    on_tpu = jax.default_backend() == "tpu"
    timed = [form for form in forms if on_tpu or FORMS[form][0] != "pallas"]
    if not timed:
        raise InputError("--forms: the fused kernel is timed on a TPU, and this machine has none")
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    tokens, heads = made.grid[0] * made.grid[1], made.num_heads
    qkv = jax.random.normal(jax.random.key(0), (images, tokens, 3 * made.width), dtype)
    positional = jnp.full((heads, tokens, tokens), 1.0 / tokens)
    for name in timed:
        form, gated = FORMS[name]
        arguments = (qkv, positional, jnp.full((heads,), 0.5)) if gated else (qkv,)

        def forward(qkv: jax.Array, *gating: jax.Array, form: kernels.Form = form) -> jax.Array:
            with kernels.compiled_for(mesh, ("data",), form):
                return kernels.self_attention((qkv,), heads, *gating)

        def total(qkv: jax.Array, *gating: jax.Array, forward: Callable = forward) -> jax.Array:
            # Weighted by something, lest the compiler multiplies by ones.
            out = forward(qkv, *gating)
            return (out * qkv[..., : out.shape[-1]]).astype(jnp.float32).sum()

        ahead, both = (
            jax.jit(forward),
            jax.jit(jax.value_and_grad(total, argnums=range(len(arguments)))),
        )
        yield AttentionTime(
            name,
            fastest(lambda ahead=ahead, a=arguments: ahead(*a), seconds),
            fastest(lambda both=both, a=arguments: both(*a), seconds),
        )
