"""How much arithmetic a model is."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from convit_jax.kernels import attention_for
from convit_jax.kernels.attention import one_product
from convit_jax.models.architecture import Architecture
from convit_jax.models.zoo import build


def forward_flops(architecture: Architecture) -> float:
    """Floating-point operations of one image's forward pass; a multiply-add is two.

    Counted in the program as traced, with attention in the form that has the fewest products, so
    that it is the model's number: no matter what computes it, or what is computed twice.

    Args:
        architecture: the model.
    """
    # In float32: conversions between types would be counted, too.
    architecture = dataclasses.replace(architecture, dtype="float32")
    attend = attention_for(form=one_product)
    graph, params = nnx.split(nnx.eval_shape(lambda: build(architecture, attend=attend)))
    image = jax.ShapeDtypeStruct(
        (1, *architecture.image_size, architecture.in_channels), jnp.float32
    )

    def classify(params: Any, image: jax.Array) -> jax.Array:
        return nnx.merge(graph, params)(image)

    # Of what is lowered and not compiled, the CPU's part of JAX alone counts the operations.
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        return jax.jit(classify).lower(params, image).cost_analysis()["flops"]
