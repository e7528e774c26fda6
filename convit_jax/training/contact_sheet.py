"""Pictures of training images: as the host makes them, and as the model sees them."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from convit_jax.training.experiment import Experiment
from convit_jax.training.step import augment, split_step_key, step_key, with_draws

# Pixels between pictures and for a caption.
GAP, _CAPTION = 4, 12
# Small images are enlarged to at least this width, so that captions fit.
_SMALLEST = 64


def augment_on_device(
    experiment: Experiment, images: np.ndarray, labels: np.ndarray, step: int
) -> tuple[np.ndarray, np.ndarray]:
    """Apply the device's part of augmentation to the first rows of a step's batch.

    Args:
        experiment: the experiment of the config.
        images: uint8 [N, H, W, C], N even.
        labels: int [N].
        step: the step whose random keys are used.

    Returns:
        Images after erasing and mixing, uint8 [N, H, W, C], and labels without smoothing, float32
        [N, num_classes].
    """
    config = dataclasses.replace(experiment.step_config, label_smoothing=0.0)
    if not (config.erasing.prob or config.mixing.enabled):
        return images, np.eye(config.num_classes, dtype=np.float32)[labels]
    mean, std = jnp.array(config.mean), jnp.array(config.std)
    _, *keys = split_step_key(step_key(config.seed, step))

    @jax.jit
    def as_seen(batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        floats, shares = augment(with_draws(batch, config, *keys), config)
        return jnp.clip((floats * std + mean) * 255, 0, 255).round().astype(jnp.uint8), shares

    pixels, shares = as_seen({"image": jnp.asarray(images), "label": jnp.asarray(labels)})
    return np.asarray(pixels), np.asarray(shares)


def shares_in_words(shares: np.ndarray, names: Sequence[str]) -> str:
    """Caption an image: `cat`, or `cat 70 dog 30`."""
    present = [label for label in np.argsort(-shares) if shares[label] > 0.005]
    if len(present) == 1:
        return names[present[0]]
    return " ".join(f"{names[label]} {100 * shares[label]:.0f}" for label in present)


def draw_grid(
    images: np.ndarray, captions: Sequence[str], columns: int, largest: int | None = None
) -> Image.Image:
    """Draw images in rows, each above its caption.

    Args:
        images: uint8 [N, H, W, C].
        captions: N texts, cut off at the images' width.
        columns: number of images in a row.
        largest: larger images are shrunk to this many pixels on their longer side; None: never.
    """
    _, height, width, channels = images.shape
    scale: float = max(1, _SMALLEST // width)
    if largest is not None and max(height, width) > largest:
        scale = largest / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    resample = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BICUBIC
    cell = (size[0] + GAP, size[1] + _CAPTION + GAP)
    columns, rows = min(columns, len(images)), -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * cell[0], rows * cell[1]), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = index % columns * cell[0], index // columns * cell[1]
        picture = Image.fromarray(image.squeeze(-1) if channels == 1 else image)
        sheet.paste(picture.resize(size, resample), (x, y))
        max_length = max(1, cell[0] // 6)  # characters of the default font are six pixels wide
        draw.text((x, y + size[1]), caption[:max_length], fill="black")
    return sheet
