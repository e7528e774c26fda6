"""Cutting and scaling images: exactly as Pillow where it is measured, quickly where it trains."""

import math

import cv2
import numpy as np
from PIL import Image


def resize_exactly(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pillow's antialiased bicubic resize: uint8 [H, W, C] → [height, width, C]."""
    if image.shape[:2] == tuple(size):
        return image
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    resized = picture.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.asarray(resized).reshape(*size, image.shape[2])


def resize_fast(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An antialiased bicubic resize at a third of Pillow's cost, about one grey level from it.

    OpenCV's bicubic filter does not widen when an image shrinks, so a Gaussian takes away first
    what the smaller image cannot hold. Its variance, (s - 1) / 2 + 0.045 pixels² for a shrinkage
    of s, is the one that comes nearest to Pillow's filter (`tests/data/test_resizing.py`).

    Args:
        image: uint8 [H, W, C].
        size: (height, width) to make.
    """
    if image.shape[:2] == tuple(size):
        return image
    shrinkage = [max(image.shape[axis] / size[axis], 1.0) for axis in (0, 1)]
    if max(shrinkage) > 1.0:
        sigma_y, sigma_x = (
            math.sqrt(0.5 * (s - 1.0) + 0.045) if s > 1.0 else 1e-3 for s in shrinkage
        )
        widths = [2 * math.ceil(2.0 * sigma) + 1 for sigma in (sigma_x, sigma_y)]
        image = cv2.GaussianBlur(image, widths, sigmaX=sigma_x, sigmaY=sigma_y)
    resized = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
    return resized.reshape(*size, image.shape[2])


def resize_and_centre_crop(
    image: np.ndarray, size: tuple[int, int], crop_fraction: float
) -> np.ndarray:
    """The evaluation's view: scaled so that `size` is `crop_fraction` of it, centre cut out.

    For 224 and 0.875 the shorter side becomes 256 pixels, as for the released weights.

    Args:
        image: uint8 [H, W, C].
        size: (height, width) of the result.
        crop_fraction: share of the scaled image's side that is kept, in (0, 1].
    """
    height, width = (math.floor(side / crop_fraction) for side in size)
    scale = max(height / image.shape[0], width / image.shape[1])
    # The side that decides is met exactly; the other is cut to whole pixels as torchvision does.
    scaled = (
        max(int(image.shape[0] * scale + 1e-6), height),
        max(int(image.shape[1] * scale + 1e-6), width),
    )
    image = resize_exactly(image, scaled)
    top, left = (round((scaled[axis] - size[axis]) / 2) for axis in (0, 1))
    return image[top : top + size[0], left : left + size[1]]


def random_resized_crop(
    shape: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """A random box (Szegedy et al. 2015): ten tries, else the largest centred one that fits.

    Args:
        shape: (height, width) of the image.
        scale: range of the box's share of the area, uniform.
        ratio: range of its width over its height, log-uniform.
        rng: random numbers.

    Returns:
        (top, left, height, width).
    """
    height, width = shape
    for area, log_ratio in zip(
        rng.uniform(*scale, size=10) * height * width,
        rng.uniform(math.log(ratio[0]), math.log(ratio[1]), size=10),
        strict=True,
    ):
        aspect = math.exp(log_ratio)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    w = min(width, round(height * ratio[1]))
    h = min(height, round(w / ratio[0]))
    w = min(w, round(h * ratio[1]))
    return (height - h) // 2, (width - w) // 2, h, w
