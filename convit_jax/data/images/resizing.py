"""Cutting and scaling images: exactly as Pillow where it is measured, quickly where it trains."""

import math

import cv2
import numpy as np
from PIL import Image

# Pillow's bicubic filter reaches so many pixels of the smaller of two images to each side.
_REACH = 2
# The Gaussian that comes nearest to that filter has this width, in the same pixels.
_SIGMA = 0.36
# Images at most so much longer than wide, for the shape that is wanted, are scaled as a whole and
# then cut: to the bit what Pillow gives, which chooses the order of its passes by the whole.
_ASPECT_AS_A_WHOLE = 16
# What is left to the Gaussian of a large shrinkage, at least; box averages do the rest.
_LEFT = 2.0


def resize_exactly(
    image: np.ndarray,
    size: tuple[int, int],
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """Pillow's antialiased bicubic resize: uint8 [H, W, C] → [height, width, C].

    Args:
        image: the channels are scaled each by itself, an alpha like any other.
        size: (height, width) to make.
        box: (top, left, bottom, right) of the part that is scaled; None for all.
    """
    if box is None and image.shape[:2] == tuple(size):
        return image
    channels = image.shape[2]
    if channels == 2:
        # Pillow would weigh the grey by the alpha.
        return np.concatenate([resize_exactly(image[..., c : c + 1], size, box) for c in (0, 1)], 2)
    if channels == 4:
        picture = Image.frombuffer("RGBX", image.shape[1::-1], np.ascontiguousarray(image))
    else:
        picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    corners = box and (box[1], box[0], box[3], box[2])
    resized = picture.resize((size[1], size[0]), Image.Resampling.BICUBIC, corners)
    return np.asarray(resized).reshape(*size, channels)


def resize_fast(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An antialiased bicubic resize at a third of Pillow's cost, one or two grey levels from it.

    OpenCV's bicubic filter does not widen when an image shrinks, so that first a Gaussian takes
    away what the smaller image cannot hold (`tests/data/images/test_resizing.py` shows the
    distance). Before a large shrinkage boxes of whole pixels are averaged, which costs next to
    nothing.

    Args:
        image: uint8 [H, W, C].
        size: (height, width) to make.
    """
    if image.shape[:2] == tuple(size):
        return image
    channels = image.shape[2]
    boxes = [max(1, int(image.shape[axis] / size[axis] / _LEFT)) for axis in (0, 1)]
    if boxes[0] * boxes[1] < 3:
        boxes = [1, 1]  # no quicker than the Gaussian
    shrinkage = [image.shape[axis] / size[axis] / boxes[axis] for axis in (0, 1)]
    image, begins = _averaged(image, boxes) if max(boxes) > 1 else (image, (0.0, 0.0))
    if max(shrinkage) > 1.0:
        sigma_y, sigma_x = (_SIGMA * s if s > 1.0 else 1e-3 for s in shrinkage)
        widths = [2 * math.ceil(1.9 * sigma) + 1 for sigma in (sigma_x, sigma_y)]
        image = cv2.GaussianBlur(image, widths, sigmaX=sigma_x, sigmaY=sigma_y)
    if max(boxes) == 1:
        resized = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
    else:
        # The boxes do not fill the image to its last pixel, so that the scale is not that of sides.
        (top, left), (y, x) = begins, shrinkage
        resized = cv2.warpAffine(
            image,
            np.array([[x, 0, (x - 1) / 2 - left], [0, y, (y - 1) / 2 - top]]),
            (size[1], size[0]),
            flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
    return resized.reshape(*size, channels)


def _averaged(image: np.ndarray, boxes: list[int]) -> tuple[np.ndarray, tuple[float, float]]:
    """Means of boxes (height, width) of pixels, and where the first begins, counted in boxes."""
    count = [image.shape[axis] // boxes[axis] for axis in (0, 1)]
    top, left = ((image.shape[axis] - count[axis] * boxes[axis]) // 2 for axis in (0, 1))
    part = image[top : top + count[0] * boxes[0], left : left + count[1] * boxes[1]]
    means = cv2.resize(part, (count[1], count[0]), interpolation=cv2.INTER_AREA)
    return means, (top / boxes[0], left / boxes[1])


def resize_and_centre_crop(
    image: np.ndarray, size: tuple[int, int], crop_fraction: float
) -> np.ndarray:
    """The evaluation's view: scaled so that `size` is `crop_fraction` of it, centre cut out.

    For 224 and 0.875 the shorter side becomes 256 pixels, as for the released weights. Of very long
    images only what is kept is scaled, so that they take no more memory than their pixels.

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
    corner = [round((scaled[axis] - size[axis]) / 2) for axis in (0, 1)]
    if max(scaled[0] / height, scaled[1] / width) <= _ASPECT_AS_A_WHOLE:
        image = resize_exactly(image, scaled)
        return image[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]]
    (rows, top, bottom), (columns, left, right) = (
        _part_for(image.shape[axis], scaled[axis], corner[axis], size[axis]) for axis in (0, 1)
    )
    return resize_exactly(image[rows, columns], size, (top, left, bottom, right))


def _part_for(side: int, scaled: int, first: int, count: int) -> tuple[slice, float, float]:
    """What is needed of a side for some pixels of it scaled.

    Args:
        side, scaled: pixels of the whole, before and after.
        first, count: which of the scaled pixels are wanted.

    Returns:
        The pixels that the filter reaches, and where in them what is wanted begins and ends.
    """
    ratio = side / scaled
    begin, end = first * ratio, min((first + count) * ratio, side)
    reach = _REACH * max(ratio, 1.0) + 1
    low, high = max(0, math.floor(begin - reach)), min(side, math.ceil(end + reach))
    return slice(low, high), begin - low, end - low


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
