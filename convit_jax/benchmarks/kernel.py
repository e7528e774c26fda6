"""What a whole train step costs on a TPU with the attention in one form or another.

Costs are static: the TPU compiler's estimates for its own instructions and the bundles of the
kernels' schedules, without waits for memory in the latter. Nothing has to run for them. A layer's
attention alone is timed, too, on the device that is there.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from convit_jax import kernels, models
from convit_jax.benchmarks.timing import fastest, timed
from convit_jax.config import resolve
from convit_jax.data.preprocessing import IMAGENET_EXAMPLES
from convit_jax.kernels.attention import one_product, two_products
from convit_jax.planning import find_topology, make_plan, schedules

# What the paper's recipe does on the device; the host's part of it costs a chip nothing.
_RECIPE = {"erase": 0.25, "mixup": 0.8, "cutmix": 1.0}


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


# Name → what the attention is, and what the model is changed by.
FORMS: dict[str, tuple[str | Callable[..., jax.Array], dict[str, Any]]] = {
    "released formula": (released_formula, {}),
    "two products, as on CPUs": (two_products, {}),
    "one product, as on TPUs": (one_product, {}),
    "fused kernel": ("pallas", {}),
    "plain attention, two products": (two_products, {"gpsa_layers": 0}),
    "plain attention, one product": (one_product, {"gpsa_layers": 0}),
    "plain attention, fused kernel": ("pallas", {"gpsa_layers": 0}),
    "no attention": (no_products, {}),
}


@dataclasses.dataclass(frozen=True)
class StepCost:
    """What `benchmark kernel` says of a form.

    Attributes:
        form: key of `FORMS`.
        cycles: of a train step on a chip, static.
        kernel_cycles: of them in the fused kernels.
        forward_cycles, backward_cycles: of one call of the longest kernels.
        compile_seconds: for tracing and compiling the step.
        forward_seconds, backward_seconds: timed on this machine's device, of one layer's attention;
            in float32 on a CPU, where the kernel is not.
    """

    form: str
    cycles: int
    kernel_cycles: int
    forward_cycles: int
    backward_cycles: int
    compile_seconds: float
    forward_seconds: float | None = None
    backward_seconds: float | None = None


def measure_kernel(
    model: str, forms: Sequence[str], *, topology: str, images: int, image_size: int, seconds: float
) -> Iterator[StepCost]:
    """Compiles the train step of a model in bfloat16 with its attention in each form.

    Args:
        model: one of `list_models()`, a ConViT.
        forms: keys of `FORMS`.
        topology: the slice to compile for.
        images: a chip and step.
        image_size: side in pixels.
        seconds: how long to time a layer's attention.
    """
    slice_ = find_topology(topology)
    batch = images * slice_.chips
    for form in forms:
        attention, changes = FORMS[form]
        config = resolve(
            {
                "batch_size": batch,
                "eval_batch_size": batch,
                "model": {"name": model, "dtype": "bfloat16", "drop_path_rate": 0.1} | changes,
                "data": {"image_size": (image_size,)},
                "augment": _RECIPE,
            }
        )
        plan, taken = timed(
            lambda config=config, attention=attention: make_plan(
                config,
                slice_,
                num_examples=IMAGENET_EXAMPLES,
                num_classes=1000,
                attention=attention,
            )
        )
        found = schedules.recorded()
        alone = [
            max((n for name, n in found.items() if part in name), default=0)
            for part in ("attention_forward", "attention_backward")
        ]
        cost = StepCost(form, plan.cycles, plan.custom_cycles, *alone, taken)
        # Interpreted, the kernel's time would say nothing.
        if attention != "pallas" or jax.default_backend() == "tpu":
            gated = changes.get("gpsa_layers") != 0
            times = _timed_alone(model, attention, images, seconds, gated=gated)
            cost = dataclasses.replace(cost, **times)
        yield cost


def _timed_alone(
    model: str,
    attention: str | Callable[..., jax.Array],
    images: int,
    seconds: float,
    *,
    gated: bool,
) -> dict[str, float]:
    """Seconds of a layer's attention, forward and with its gradients, on this machine's device."""
    made = models.architecture(model)
    tokens, heads = made.grid[0] * made.grid[1], made.num_heads
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    qkv = jax.random.normal(jax.random.key(0), (images, tokens, 3 * made.width), dtype)
    by_position = ()
    if gated:
        by_position = (jnp.full((heads, tokens, tokens), 1.0 / tokens), jnp.full((heads,), 0.5))

    def forward(qkv: jax.Array, *by_position: jax.Array) -> jax.Array:
        with kernels.compiled_for(mesh, ("data",), attention):
            return kernels.self_attention((qkv,), heads, *by_position)

    def total(qkv: jax.Array, *by_position: jax.Array) -> jax.Array:
        # Weighted by something, lest the compiler multiplies by ones.
        out = forward(qkv, *by_position)
        return (out * qkv[..., : out.shape[-1]]).astype(jnp.float32).sum()

    arguments = (qkv, *by_position)
    once, both = jax.jit(forward), jax.jit(jax.grad(total, argnums=range(len(arguments))))
    ahead = fastest(lambda: once(*arguments), seconds)
    return {
        "forward_seconds": ahead,
        "backward_seconds": fastest(lambda: both(*arguments), seconds) - ahead,
    }
