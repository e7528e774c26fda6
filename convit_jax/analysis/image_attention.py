"""Everything that one model does with one image: content attention, rollout, classes."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx

from convit_jax.models import VisionTransformer
from convit_jax.models.gpsa import GPSA

# Number of classes that are kept.
_TOP = 5


@dataclasses.dataclass(frozen=True, eq=False)
class ImageAttention:
    """Attention of a model in one image. L layers, H heads, N patches.

    Attributes:
        name: the image's path, or its place in a dataset.
        photograph: uint8 [height, width, channels], the crop that the model saw, with at least as
            many pixels.
        content: softmax(Q Kᵀ / √D) of each layer, float32 [H, T, T] with T = N, or N + 1 tokens
            where there is a class token, the first; without the gate, in every layer. Vanilla
            positional attention has one softmax of both: all of it.
        rollout: float32 [rows, columns], how much of what is classified comes from each patch.
        classes: (name, probability) of the most likely ones; empty for a model without a head.
    """

    name: str
    photograph: np.ndarray
    content: list[np.ndarray]
    rollout: np.ndarray
    classes: list[tuple[str, float]]


def attention_in_images(
    model: VisionTransformer,
    images: np.ndarray,
    photographs: Sequence[np.ndarray],
    names: Sequence[str],
    class_names: Sequence[str],
) -> list[ImageAttention]:
    """Return a model's attention in each image.

    Args:
        model: any vision transformer.
        images: floating, normalised, [B, height, width, channels].
        photographs: the same crops for people to look at, uint8 [height, width, channels] each.
        names: of the images.
        class_names: of the model's classes.

    Raises:
        InputError: images of a shape that the model does not take.
    """
    graph, state = nnx.split(model)
    run = jax.jit(lambda state, images: _forward(nnx.merge(graph, state), images))
    records = []
    # One by one: the maps of all layers of a large model fill 30 MB an image.
    for image, photograph, name in zip(images, photographs, names, strict=True):
        content, rollout, logits = jax.tree.map(lambda x: np.asarray(x[0]), run(state, image[None]))
        classes = [] if model.head is None else _most_likely(logits, class_names)
        records.append(ImageAttention(name, photograph, content, rollout, classes))
    return records


def _forward(
    model: VisionTransformer, images: jax.Array
) -> tuple[list[jax.Array], jax.Array, jax.Array]:
    """Return content attention by layer, [B, H, T, T] each, the rollout, and the logits."""
    trace, grid = model.trace(images), model.architecture.grid
    content = []
    for block, x in zip(model.blocks, trace.inputs, strict=True):
        layer = block.attention
        if isinstance(layer, GPSA):
            content.append(layer.content_attention(block.norm1(x)))
        else:
            content.append(block.attention_map(x, grid))
    return content, model.attention_rollout(images), trace.logits


def _most_likely(logits: np.ndarray, class_names: Sequence[str]) -> list[tuple[str, float]]:
    probabilities = np.asarray(jax.nn.softmax(logits))
    top = np.argsort(-probabilities, kind="stable")[:_TOP]
    return [(class_names[label], float(probabilities[label])) for label in top]
