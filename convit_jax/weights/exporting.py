"""Export of a model with its preprocessing as a program that runs without this package."""

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
    graph, state = nnx.split(model.with_attention(attention_for(form="xla")))

    def classify(images: jax.Array) -> jax.Array:
        cropped = resize_and_centre_crop(
            images, preprocessing.image_size, preprocessing.crop_fraction
        )
        pixels = normalise(cropped, preprocessing.mean, preprocessing.std)
        return jax.nn.softmax(nnx.merge(graph, state)(pixels))

    batch, height, width = export.symbolic_shape("batch, height, width")
    images = jax.ShapeDtypeStruct((batch, height, width, len(preprocessing.mean)), jnp.uint8)
    return bytes(export.export(jax.jit(classify), platforms=PLATFORMS)(images).serialize())
