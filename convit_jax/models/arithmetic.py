"""The floating-point operations of a model."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from convit_jax.kernels import attention_for
from convit_jax.kernels.attention import one_product
from convit_jax.models.architecture import Architecture
from convit_jax.models.vit import VisionTransformer
from convit_jax.models.zoo import build


def forward_flops(architecture: Architecture) -> float:
    """Return the floating-point operations of one image's forward pass; a multiply-add is two.

    They are counted in the traced program, with attention in the formulation with the fewest
    products. So the number depends on the model only, not on kernels or recomputation.

    Args:
        architecture: the model.
    """
    model, image = _abstract_model_and_image(architecture)
    graph, params = nnx.split(model)
    return _count(lambda params, image: nnx.merge(graph, params)(image), params, image)


def training_flops(architecture: Architecture, trainable: nnx.filterlib.Filter = True) -> float:
    """Return the floating-point operations of one image's forward and backward pass.

    By convention the backward pass of a model that is trained entirely counts as two forward
    passes. If a part is trained, it counts as its share of that, counted in the traced programs.

    Args:
        architecture: the model.
        trainable: an NNX filter that selects the parameters which are trained, by default all.
    """
    forward = forward_flops(architecture)
    if trainable is True:
        return 3 * forward
    model, image = _abstract_model_and_image(architecture)

    def with_gradient(trainable: nnx.filterlib.Filter) -> float:
        graph, params = nnx.split(model)
        trained, frozen = nnx.split_state(params, trainable, ...)

        def loss(trained: Any, frozen: Any, image: jax.Array) -> jax.Array:
            return nnx.merge(graph, trained, frozen)(image).sum()

        return _count(jax.value_and_grad(loss), trained, frozen, image)

    share = (with_gradient(trainable) - forward) / (with_gradient(True) - forward)
    return (1 + 2 * share) * forward


def _abstract_model_and_image(
    architecture: Architecture,
) -> tuple[VisionTransformer, jax.ShapeDtypeStruct]:
    """Return shapes and types of the model whose operations are counted, and of one image."""
    # In float32: conversions between types would be counted too.
    a = dataclasses.replace(architecture, dtype="float32", remat=False)
    attend = attention_for(form=one_product)
    image = jax.ShapeDtypeStruct((1, *a.image_size, a.in_channels), jnp.float32)
    return nnx.eval_shape(lambda: build(a, attend=attend)), image


def _count(function: Callable[..., Any], *args: Any) -> float:
    """Return the floating-point operations of a function of arrays with these shapes."""
    # Only JAX's CPU backend counts the operations of a program that is lowered but not compiled.
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        costs = jax.jit(function).lower(*args).cost_analysis()
    assert costs is not None  # other backends may have none
    return costs["flops"]
