"""Applying a model to image files, batch by batch."""

import itertools
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
from flax import nnx

from convit_jax.data.images.preprocessing import Preprocessing
from convit_jax.errors import InputError, fitting_memory
from convit_jax.models import VisionTransformer


def read_images(
    paths: Iterable[str], preprocessing: Preprocessing, on_error: Callable[[str, str], None]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each image that can be read, with its path, scaled and cropped: uint8 [H, W, channels].

    Args:
        paths: of the images.
        preprocessing: scales and crops them.
        on_error: called with the path of an image that cannot be read, and a sentence.
    """
    for path in paths:
        try:
            yield path, preprocessing.crop(path)
        except InputError as error:
            on_error(path, str(error))


def apply_to_images(
    function: Callable[[VisionTransformer, jax.Array], jax.Array],
    model: VisionTransformer,
    preprocessing: Preprocessing,
    images: Iterable[tuple[str, np.ndarray]],
    batch_size: int,
) -> Iterator[tuple[str, np.ndarray]]:
    """Apply a function of a model to images.

    Args:
        function: (model, normalised images [B, H, W, channels]) → an array with a row per image.
        model: any vision transformer.
        preprocessing: normalises the images.
        images: (path, uint8 image) of each image.
        batch_size: number of images per batch.

    Yields:
        (path, row of the result) of each image.
    """
    graph, state = nnx.split(model)
    run = jax.jit(lambda state, images: function(nnx.merge(graph, state), images))
    height, width = preprocessing.image_size
    images = iter(images)
    while batch := list(itertools.islice(images, batch_size)):
        pixels = np.stack([image for _, image in batch])
        # All batches have the same shape, to compile once.
        padded = np.resize(pixels, (batch_size, *pixels.shape[1:]))
        with fitting_memory(f"--batch-size={batch_size}, images of {height}x{width} pixels"):
            rows = np.asarray(run(state, preprocessing.normalise(padded)))
        yield from zip((path for path, _ in batch), rows, strict=False)
