"""The forms of attention that are compared with each other, and a layer's time in each."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from convit_jax import kernels, models
from convit_jax.benchmarks.timing import fastest
from convit_jax.errors import InputError
from convit_jax.kernels.attention import one_product, two_products
from convit_jax.models.vit import attention_layer


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


# Name → what `attention_for` takes for the form, and whether attention is gated or plain.
FORMS: dict[str, tuple[str | Callable[..., jax.Array], bool]] = {
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
# Forms of one platform: elsewhere they do not run, or are interpreted, and their time says nothing.
_ONLY_ON = {"pallas": "tpu", "cudnn": "gpu"}


@dataclasses.dataclass(frozen=True)
class AttentionTime:
    """What `benchmark attention` says of a form: seconds of one attention layer.

    Attributes:
        model: whose layer it is.
        form: key of `FORMS`.
        forward_seconds: of the forward pass, projections included.
        train_seconds: of the forward pass and the gradients of everything that goes in.
    """

    model: str
    form: str
    forward_seconds: float
    train_seconds: float


def measure_attention(
    model: str, forms: Sequence[str], *, images: int, image_size: int, dtype: str, seconds: float
) -> Iterator[AttentionTime]:
    """Times an attention layer in each form on this machine's device.

    A layer is from normalised tokens to what is added to them: its projections are part of it,
    since a form may want them otherwise.

    Args:
        model: one of `list_models()`, a ConViT.
        forms: keys of `FORMS`; those of another platform are left out.
        images: at once.
        image_size: side in pixels.
        dtype: "float32" or "bfloat16".
        seconds: how long to repeat each.

    Raises:
        InputError: no such model or image size, a form that cannot compute in the type, or nothing
            is left to time.
    """
    architecture = models.architecture(model, image_size=image_size, dtype=dtype)
    device = jax.devices()[0]
    here = [
        name
        for name, (form, _) in FORMS.items()
        if _ONLY_ON.get(str(form), device.platform) == device.platform
    ]
    timed = [form for form in forms if form in here]
    if not timed:
        raise InputError(
            f"--forms: {', '.join(forms)} cannot be timed here; expected some of {', '.join(here)}"
        )
    mesh = jax.make_mesh((1,), ("data",), devices=[device])
    tokens = math.prod(architecture.grid)
    x = jax.random.normal(jax.random.key(0), (images, tokens, architecture.width), dtype)
    for name in timed:
        form, gated = FORMS[name]
        attend = kernels.attention_for(mesh, form)
        attend.check(jnp.dtype(dtype), architecture.head_dim, tokens)
        layer = attention_layer(architecture, attend, gpsa=gated, rngs=nnx.Rngs(0))
        graph, params = nnx.split(layer)

        def forward(
            params: nnx.State,
            x: jax.Array,
            graph: nnx.GraphDef = graph,
        ) -> jax.Array:
            return nnx.merge(graph, params)(x, architecture.grid)

        def total(params: nnx.State, x: jax.Array, forward: Callable = forward) -> jax.Array:
            # Weighted by something, lest the compiler multiplies by ones.
            return (forward(params, x) * x).astype(jnp.float32).sum()

        ahead, both = jax.jit(forward), jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
        yield AttentionTime(
            model,
            name,
            fastest(lambda ahead=ahead, params=params: ahead(params, x), seconds),
            fastest(lambda both=both, params=params: both(params, x), seconds),
        )
