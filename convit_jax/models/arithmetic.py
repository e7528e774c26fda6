"""The floating-point operations of a model."""

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
    """Return the floating-point operations of one image's forward pass; a multiply-add is two.

    They are counted in the traced program, with attention in the formulation with the fewest
    products. So the number depends on the model only, not on kernels or recomputation.

    Args:
        architecture: the model.
    """
    # In float32: conversions between types would be counted too.
    architecture = dataclasses.replace(architecture, dtype="float32")
    attend = attention_for(form=one_product)
    graph, params = nnx.split(nnx.eval_shape(lambda: build(architecture, attend=attend)))
    image = jax.ShapeDtypeStruct(
        (1, *architecture.image_size, architecture.in_channels), jnp.float32
    )

    def classify(params: Any, image: jax.Array) -> jax.Array:
        return nnx.merge(graph, params)(image)

    # Only JAX's CPU backend counts the operations of a program that is lowered but not compiled.
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        costs = jax.jit(classify).lower(params, image).cost_analysis()
    assert costs is not None  # other backends may have none
    return costs["flops"]
