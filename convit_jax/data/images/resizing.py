"""Resizing and cropping images: as Pillow for evaluation, approximately for training."""

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from PIL import Image

try:
    import cykooz_resizer as simd
except ModuleNotFoundError:  # there is none for ARM under Linux
    simd = None

# Radius of Pillow's bicubic filter, in pixels of the smaller of input and output.
_FILTER_RADIUS = 2
# Standard deviation of the Gaussian that is closest to that filter, in the same pixels.
_SIGMA = 0.36
# Box averages leave at least this factor of a large shrinkage to the Gaussian.
_MIN_SHRINKAGE = 2.0
# Rows that are scaled at a time in float32, so that large photographs need little memory.
_ROWS_AT_A_TIME = 128


def resize_exactly(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize by Pillow's antialiased bicubic filter: uint8 [H, W, C] → [height, width, C].

    Each channel is scaled by itself, including alpha.
    """
    if image.shape[:2] == tuple(size):
        return image
    return _with_pillow(image, lambda whole: whole.resize(size[::-1], Image.Resampling.BICUBIC))


def _with_pillow(image: np.ndarray, operation: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Apply an operation to a PIL image whose bands are the channels of uint8 [H, W, C]."""
    channels = image.shape[2]
    if channels == 2:
        # Pillow would premultiply the grey values by alpha.
        return np.concatenate([_with_pillow(image[..., c : c + 1], operation) for c in (0, 1)], 2)
    image = np.ascontiguousarray(image)  # Pillow takes ten times as long to copy a part of an array
    if channels == 4:
        pil_image = Image.frombuffer("RGBX", image.shape[1::-1], image)
    else:
        pil_image = Image.fromarray(image[..., 0] if channels == 1 else image)
    result = np.asarray(operation(pil_image))
    return result.reshape(*result.shape[:2], channels)


def resize_fast(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize bicubically with antialiasing, at a third of Pillow's cost.

    The result is within one or two grey levels of Pillow's, on average
    (`tests/data/images/test_resizing.py`). OpenCV's bicubic filter does not widen when an image
    shrinks, so a Gaussian filter is applied first. For a large shrinkage, boxes of whole pixels are
    averaged before that, at almost no cost.

    Args:
        image: uint8 [H, W, C].
        size: (height, width) of the result.

    Returns:
        uint8 [height, width, C].
    """
    if image.shape[:2] == tuple(size):
        return image
    channels = image.shape[2]
    boxes = [max(1, int(image.shape[axis] / size[axis] / _MIN_SHRINKAGE)) for axis in (0, 1)]
    if boxes[0] * boxes[1] < 3:
        boxes = [1, 1]  # no faster than the Gaussian
    shrinkage = [image.shape[axis] / size[axis] / boxes[axis] for axis in (0, 1)]
    image, origin = _box_average(image, boxes) if max(boxes) > 1 else (image, (0.0, 0.0))
    if max(shrinkage) > 1.0:
        sigma_y, sigma_x = (_SIGMA * s if s > 1.0 else 1e-3 for s in shrinkage)
        widths = [2 * math.ceil(1.9 * sigma) + 1 for sigma in (sigma_x, sigma_y)]
        image = cv2.GaussianBlur(image, widths, sigmaX=sigma_x, sigmaY=sigma_y)
    if max(boxes) == 1:
        resized = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
    else:
        # The boxes do not fill the whole image, so the scale differs from the ratio of the sides.
        (top, left), (y, x) = origin, shrinkage
        resized = cv2.warpAffine(
            image,
            np.array([[x, 0, (x - 1) / 2 - left], [0, y, (y - 1) / 2 - top]]),
            (size[1], size[0]),
            flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
    return resized.reshape(*size, channels)


def _box_average(image: np.ndarray, boxes: list[int]) -> tuple[np.ndarray, tuple[float, float]]:
    """Return means over boxes (height, width) of pixels, and the first box's corner in boxes."""
    num_boxes = [image.shape[axis] // boxes[axis] for axis in (0, 1)]
    top, left = ((image.shape[axis] - num_boxes[axis] * boxes[axis]) // 2 for axis in (0, 1))
    part = image[top : top + num_boxes[0] * boxes[0], left : left + num_boxes[1] * boxes[1]]
    means = cv2.resize(part, (num_boxes[1], num_boxes[0]), interpolation=cv2.INTER_AREA)
    return means, (top / boxes[0], left / boxes[1])


def resize_and_centre_crop(
    image: np.ndarray, size: tuple[int, int], crop_fraction: float
) -> np.ndarray:
    """Scale an image so that `size` is `crop_fraction` of it, and crop the centre, for evaluation.

    For 224 and 0.875 the shorter side becomes 256 pixels, as for the released weights. Only the
    pixels that are kept are computed. They are those of the whole image scaled by Pillow (columns
    first, then rows), except for about one value in 400, which differs by one grey level.

    Args:
        image: uint8 [H, W, C].
        size: (height, width) of the result.
        crop_fraction: the crop's side as a share of the scaled image's, in (0, 1].

    Returns:
        uint8 [height, width, C].
    """
    height, width = (math.floor(side / crop_fraction) for side in size)
    scaled = _scaled_to_cover(image, (height, width))
    first = [round((scaled[axis] - size[axis]) / 2) for axis in (0, 1)]
    return _resize_and_crop(image, scaled, first, size)


def resize_and_random_crop(
    image: np.ndarray, size: tuple[int, int], padding: int, rng: np.random.Generator
) -> np.ndarray:
    """Scale an image so that it covers `size`, pad it by reflection, and crop at random.

    This is the simple random crop of DeiT III (Touvron et al. 2022). Only the pixels that are kept
    are computed, as in `resize_and_centre_crop`.

    Args:
        image: uint8 [H, W, C].
        size: (height, width) of the result.
        padding: width of the border, in pixels.
        rng: random generator.

    Returns:
        uint8 [height, width, C].
    """
    scaled = _scaled_to_cover(image, size)
    begins = [int(rng.integers(scaled[i] - size[i] + 2 * padding + 1)) - padding for i in (0, 1)]
    first = [max(begin, 0) for begin in begins]
    visible_height, visible_width = (min(begins[i] + size[i], scaled[i]) - first[i] for i in (0, 1))
    image = _resize_and_crop(image, scaled, first, (visible_height, visible_width))
    top, left = (max(-begin, 0) for begin in begins)
    bottom, right = size[0] - top - visible_height, size[1] - left - visible_width
    padded = cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_REFLECT_101)
    return padded.reshape(*size, image.shape[2])


def _scaled_to_cover(image: np.ndarray, size: tuple[int, int]) -> tuple[int, int]:
    """Return the (height, width) of an image scaled so that it just covers `size`.

    The side that determines the scale is exact; the other is rounded down, as in torchvision.
    """
    scale = max(size[0] / image.shape[0], size[1] / image.shape[1])
    height, width = (max(int(image.shape[axis] * scale + 1e-6), size[axis]) for axis in (0, 1))
    return height, width


def _resize_and_crop(
    image: np.ndarray, scaled: tuple[int, int], first: Sequence[int], size: tuple[int, int]
) -> np.ndarray:
    """Return the pixels from `first` on, `size` of them, of an image scaled to `scaled`."""
    (rows, *vertical), (columns, *horizontal) = (
        _source_span(image.shape[axis], scaled[axis], first[axis], size[axis]) for axis in (0, 1)
    )
    # Enlarged, many values are so close to halves that both roundings can differ.
    enlarged = scaled[0] > image.shape[0] or scaled[1] > image.shape[1]
    resample = _resample_with_pillow if simd is None or enlarged else _resample
    return resample(image[rows, columns], size, vertical, horizontal)


def _resample(
    image: np.ndarray, size: tuple[int, int], vertical: Sequence[float], horizontal: Sequence[float]
) -> np.ndarray:
    """Resample a part of an image, as Pillow, by vector instructions.

    As in Pillow, columns are scaled first and rounded. That is computed in float32, so that they
    are Pillow's. Then rows are scaled with weights of 16 bits: only that can change the result, by
    one grey level.

    Args:
        image: uint8 [H, W, C].
        size: (height, width) of the result.
        vertical, horizontal: (begin, end) of the part, in pixels of the image.

    Returns:
        uint8 [height, width, C].
    """
    height, width, channels = len(image), size[1], image.shape[2]
    scaled = np.empty((height, width * channels), np.uint8)
    for top in range(0, height, _ROWS_AT_A_TIME):
        part = image[top : top + _ROWS_AT_A_TIME].astype(np.float32)
        values = _convolve(part, (len(part), width), (0, len(part)), horizontal)
        values = values.reshape(len(part), -1)
        # OpenCV rounds halves to even numbers, Pillow rounds them up.
        rounded = cv2.addWeighted(values, 1.0, values, 0.0, 2.0**-14, dtype=cv2.CV_8U)
        scaled[top : top + _ROWS_AT_A_TIME] = rounded
    return _convolve(scaled.reshape(height, width, channels), size, vertical, (0, width))


def _convolve(
    image: np.ndarray, size: tuple[int, int], vertical: Sequence[float], horizontal: Sequence[float]
) -> np.ndarray:
    """Resample a part of an image of uint8 or float32 by the bicubic filter, in its type."""
    (top, bottom), (left, right) = vertical, horizontal
    kind = "U8" if image.dtype == np.uint8 else "F32"
    channels = image.shape[2]
    pixel_type = simd.PixelType[kind if channels == 1 else f"{kind}x{channels}"]
    result = simd.ImageData(*size[::-1], pixel_type)
    simd.Resizer().resize(
        simd.ImageData(*image.shape[1::-1], pixel_type, image.tobytes()),
        result,
        simd.ResizeOptions(
            resize_alg=simd.ResizeAlg.convolution(simd.FilterType.catmull_rom),
            crop_box=simd.CropBox(left, top, right - left, bottom - top),
            use_alpha=False,
        ),
    )
    return np.frombuffer(result.get_buffer(), image.dtype).reshape(*size, channels)


def _resample_with_pillow(
    image: np.ndarray, size: tuple[int, int], vertical: Sequence[float], horizontal: Sequence[float]
) -> np.ndarray:
    """Compute `_resample`, more slowly, where the library for it is not available."""
    (top, bottom), (left, right) = vertical, horizontal

    def resample(part: Image.Image) -> Image.Image:
        # By two calls, because in a single one Pillow chooses the order by the part's shape.
        filter_ = Image.Resampling.BICUBIC
        part = part.resize((size[1], part.height), filter_, (left, 0, right, part.height))
        return part.resize((size[1], size[0]), filter_, (0, top, size[1], bottom))

    return _with_pillow(image, resample)


def _source_span(side: int, scaled: int, first: int, cropped: int) -> tuple[slice, float, float]:
    """Return which source pixels determine some pixels of a scaled side.

    Args:
        side, scaled: length of the whole side in pixels, before and after scaling.
        first, cropped: the first pixel of the scaled side to compute, and their number.

    Returns:
        The source pixels within the filter's radius, and the positions among them where the
        computed pixels begin and end.
    """
    ratio = side / scaled
    begin, end = first * ratio, min((first + cropped) * ratio, side)
    radius = _FILTER_RADIUS * max(ratio, 1.0) + 1
    low, high = max(0, math.floor(begin - radius)), min(side, math.ceil(end + radius))
    return slice(low, high), begin - low, end - low


def random_resized_crop(
    shape: tuple[int, ...],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """Draw a random box (Szegedy et al. 2015): ten tries, else the largest centred one that fits.

    Args:
        shape: (height, width) of the image.
        scale: (low, high) of the box's share of the area, uniform.
        ratio: (low, high) of the box's width over its height, log-uniform.
        rng: random generator.

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
