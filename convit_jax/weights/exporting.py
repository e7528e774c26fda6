"""Export of models as programs that run without this package."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import export

from convit_jax.data.images.device_resizing import resize_and_centre_crop
from convit_jax.data.images.preprocessing import Preprocessing
from convit_jax.data.mixing import normalise
from convit_jax.kernels import attention_for
from convit_jax.models import VisionTransformer

PLATFORMS = ("cpu", "tpu", "cuda")


def export_classifier(model: VisionTransformer, preprocessing: Preprocessing) -> bytes:
    """Export the function uint8 [B, H, W, channels] → probabilities, float32 [B, num_classes].

    The program includes the weights and the resizing, cropping and normalisation; B, H and W are
    symbolic. It runs on CPU, TPU and CUDA with `jax.export.deserialize(…).call`.

    Args:
        model: with its weights.
        preprocessing: of the model's images.

    Returns:
        A serialised `jax.export` artefact, which contains StableHLO.
    """
    apply = _portable(model)

    def classify(images: jax.Array) -> jax.Array:
        cropped = resize_and_centre_crop(
            images, preprocessing.image_size, preprocessing.crop_fraction
        )
        pixels = normalise(cropped, preprocessing.mean, preprocessing.std)
        return jax.nn.softmax(apply(pixels))

    batch, height, width = export.symbolic_shape("batch, height, width")
    images = jax.ShapeDtypeStruct((batch, height, width, len(preprocessing.mean)), jnp.uint8)
    return _serialise(classify, images)


def export_logits(model: VisionTransformer) -> bytes:
    """Export the function float32 [B, height, width, channels] → logits, float32 [B, num_classes].

    The program includes the weights, not the preprocessing: it takes images of the model's size
    that are already normalised, as a teacher does (`config.distill.teacher`). B is symbolic.

    Args:
        model: with its weights.

    Returns:
        A serialised `jax.export` artefact, which contains StableHLO.
    """
    a = model.architecture
    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *a.image_size, a.in_channels), jnp.float32)
    return _serialise(_portable(model), images)


def _portable(model: VisionTransformer) -> Callable[[jax.Array], jax.Array]:
    """Return the model as a function that can be exported for all platforms."""
    graph, state = nnx.split(model.with_attention(attention_for(form="xla")))
    return lambda images: nnx.merge(graph, state)(images)


def _serialise(function: Callable[[jax.Array], jax.Array], images: jax.ShapeDtypeStruct) -> bytes:
    return bytes(export.export(jax.jit(function), platforms=PLATFORMS)(images).serialize())
