"""Image operations on uint8 arrays: Pillow's definitions, implemented with OpenCV.

Each maps uint8 [H, W, 3] to the same shape. Pixelwise operations are look-up tables and equal
Pillow's up to rounding; geometric ones are within half a grey level on average, at half the cost
(`tests/data/images/test_randaugment.py`).
"""

import functools
import math

import cv2
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from convit_jax.data.sources import imagenet

# Colour of pixels from outside the image: ImageNet's mean.
FILL = tuple(round(255 * mean) for mean in imagenet.MEAN)
_LEVELS = np.arange(256)
# Offset that turns OpenCV's rounding of interpolated values into Pillow's truncation.
_TRUNCATE = -0.5
# Pillow's smoothing filter: sharpness 0.
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


def _table(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Look up every pixel in `values`, [256] for all channels or [256, 3] for one table each.

    As in Pillow, values are truncated to integers.
    """
    table = np.clip(values, 0, 255).astype(np.uint8)
    return cv2.LUT(image, table.reshape(256, 1, -1))


def auto_contrast(image: np.ndarray) -> np.ndarray:
    """Stretch each channel to the full range."""
    low, high = image.min(0).min(0).astype(float), image.max(0).max(0).astype(float)
    span = high - low
    scale = np.where(span > 0, 255.0 / np.maximum(span, 1), 1.0)
    offset = np.where(span > 0, -low * scale, 0.0)
    return _table(image, _LEVELS[:, None] * scale + offset)


def equalize(image: np.ndarray) -> np.ndarray:
    """Equalise each channel's histogram."""
    tables = [_equalizing_table(image, channel) for channel in range(image.shape[2])]
    return _table(image, np.stack(tables, axis=1))


def _equalizing_table(image: np.ndarray, channel: int) -> np.ndarray:
    counts = cv2.calcHist([image], [channel], None, [256], [0, 256]).ravel().astype(np.int64)
    used = counts[counts > 0]
    step = (used.sum() - used[-1]) // 255
    if step == 0:
        return _LEVELS
    return (step // 2 + np.cumsum(counts) - counts) // step


def invert(image: np.ndarray) -> np.ndarray:
    """Invert all values."""
    return cv2.bitwise_not(image)


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
    """Keep the highest `bits` bits of each value; 0 bits give black."""
    return cv2.bitwise_and(image, np.full_like(image, 256 - (1 << (8 - bits)) if bits else 0))


def solarize(image: np.ndarray, threshold: int) -> np.ndarray:
    """Invert the values at or above a threshold."""
    return _table(image, np.where(threshold > _LEVELS, _LEVELS, 255 - _LEVELS))


def solarize_add(image: np.ndarray, amount: int, threshold: int = 128) -> np.ndarray:
    """Add `amount` to the values below a threshold."""
    return _table(image, np.where(threshold > _LEVELS, _LEVELS + amount, _LEVELS))


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Interpolate between black (factor 0) and the image (1), or extrapolate."""
    return _table(image, _LEVELS * factor)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Interpolate between the mean grey (factor 0) and the image (1), or extrapolate."""
    mean = math.floor(_grey(image).mean() + 0.5)
    return _table(image, mean + (_LEVELS - mean) * factor)


def colour(image: np.ndarray, factor: float) -> np.ndarray:
    """Interpolate between the grey image (factor 0) and the image (1), or extrapolate."""
    return _blend(greyscale(image), image, factor)


def greyscale(image: np.ndarray) -> np.ndarray:
    """Replace the colours by their luminance."""
    return cv2.cvtColor(_grey(image), cv2.COLOR_GRAY2RGB)


def gaussian_blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Blur by a Gaussian of a standard deviation in pixels, which Pillow approximates by boxes."""
    return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Interpolate between the smoothed image (factor 0) and the image (1), or extrapolate."""
    if min(image.shape[:2]) < 3:
        return image
    smooth = image.copy()  # the outermost pixels are unchanged
    smooth[1:-1, 1:-1] = cv2.filter2D(image, -1, _SMOOTH)[1:-1, 1:-1]
    return _blend(smooth, image, factor)


def shear_x(image: np.ndarray, factor: float) -> np.ndarray:
    """Shift each row to the left by its distance from the top times the factor.

    Every row is interpolated by a filter of four taps of its own.
    """
    height, width, channels = image.shape
    shifts = factor * (np.arange(height) + 0.5)
    first = np.floor(shifts).astype(int)
    taps = _cubic_taps(shifts - first).astype(np.float32)
    # The columns that each row's filter covers, among those of the image with its margins.
    first = np.clip(first, -width - 1, width) - 1
    margins = max(0, -first.min()), max(0, first.max() + 3)
    padded = cv2.copyMakeBorder(image, 0, 0, *margins, cv2.BORDER_REPLICATE)
    spans = sliding_window_view(padded.reshape(height, -1), (width + 3) * channels, axis=1)
    rows = spans[np.arange(height), (first + margins[0]) * channels].astype(np.float32)
    neighbours = sliding_window_view(rows, width * channels, axis=1)[:, ::channels]
    sheared = np.einsum("hkw,kh->hw", neighbours, taps)
    sheared = cv2.addWeighted(sheared, 1.0, sheared, 0.0, _TRUNCATE, dtype=cv2.CV_8U)
    centres = np.add.outer(shifts, np.arange(width) + 0.5)
    inside = ((centres >= 0) & (centres < width)).view(np.uint8)
    return cv2.copyTo(sheared.reshape(image.shape), inside, _filled(image.shape).copy())


def shear_y(image: np.ndarray, factor: float) -> np.ndarray:
    """Shift each column upwards by its distance from the left times the factor."""
    return cv2.transpose(shear_x(cv2.transpose(image), factor))


def translate_x(image: np.ndarray, share: float) -> np.ndarray:
    """Shift to the left by a share of the width."""
    return _translate(image, share * image.shape[1], axis=1)


def translate_y(image: np.ndarray, share: float) -> np.ndarray:
    """Shift upwards by a share of the height."""
    return _translate(image, share * image.shape[0], axis=0)


def rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    """Rotate counter-clockwise about the centre, with bicubic interpolation.

    Positions are Pillow's: measured from the image's corner, so that pixel centres are at 1/2.
    Positions outside the image give `FILL`; interpolation near the edge repeats the outermost
    pixel.

    Pillow's cubic kernel has the parameter a = -1 (Keys 1981), OpenCV's a = -3/4. The kernel is
    linear in a, and a = 0 is linear interpolation at smoothly distorted positions, so
    4/3 · (a = -3/4) - 1/3 · (a = 0) is Pillow's, except for a small cross term of the two axes.
    """
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    size = width, height = image.shape[1], image.shape[0]
    x, y = (width - 1) / 2, (height - 1) / 2  # OpenCV counts from pixel centres
    matrix = np.array([[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y]])
    pixels = image.astype(np.float32)
    border = cv2.BORDER_REPLICATE
    cubic = cv2.warpAffine(
        pixels, matrix, size, flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, borderMode=border
    )
    map_x, map_y = (_smooth_positions(row, size) for row in matrix)
    smooth = cv2.remap(pixels, map_x, map_y, cv2.INTER_LINEAR, borderMode=border)
    mixed = cv2.addWeighted(cubic, 4 / 3, smooth, -1 / 3, _TRUNCATE, dtype=cv2.CV_8U)
    ones, nearest = np.ones(image.shape[:2], np.uint8), cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    inside = cv2.warpAffine(ones, matrix, size, flags=nearest)
    return cv2.copyTo(mixed, inside, _filled(image.shape).copy())


def _cubic_taps(t: np.ndarray | float) -> np.ndarray:
    """Return Keys' weights, for a = -1, of the pixels at -1, 0, 1, 2 for a position t in [0, 1)."""
    return np.array([-t * (1 - t) ** 2, 1 - 2 * t**2 + t**3, t * (1 + t - t**2), t**3 - t**2])


def _smooth_positions(row: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return where linear interpolation gives the cubic of a = 0: t → t² (3 - 2t) in each pixel."""
    a, b, c = row.astype(np.float32)
    width, height = size
    positions = np.add.outer(
        b * np.arange(height, dtype=np.float32) + c, a * np.arange(width, dtype=np.float32)
    )
    first = np.floor(positions)
    positions -= first
    weight = positions * -2.0
    weight += 3.0
    weight *= positions
    weight *= positions
    weight += first
    return weight


@functools.lru_cache(maxsize=8)
def _filled(shape: tuple[int, ...]) -> np.ndarray:
    return np.full(shape, FILL, np.uint8)


def _translate(image: np.ndarray, shift: float, axis: int) -> np.ndarray:
    """Shift by -`shift` pixels along an axis, by a filter of four taps."""
    side = image.shape[axis]
    whole = math.floor(shift)
    taps = _cubic_taps(shift - whole)
    anchor = (1, 0) if axis == 1 else (0, 1)
    # A margin before the first pixel, for positions up to half a pixel outside.
    margins = (0, 0, 1, 0) if axis == 1 else (1, 0, 0, 0)
    interpolated = cv2.filter2D(
        cv2.copyMakeBorder(image, *margins, cv2.BORDER_REPLICATE),
        -1,
        taps[None] if axis == 1 else taps[:, None],
        anchor=anchor,
        delta=_TRUNCATE,
        borderType=cv2.BORDER_REPLICATE,
    )
    # Output pixel x samples position x + shift, whose centre must be inside the image.
    first, last = max(0, math.ceil(-shift - 0.5)), min(side, math.ceil(side - shift - 0.5))
    out = _filled(image.shape).copy()
    target, source = slice(first, last), slice(first + whole + 1, last + whole + 1)
    if axis == 1:
        out[:, target] = interpolated[:, source]
    else:
        out[target] = interpolated[source]
    return out


def _grey(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def _blend(degenerate: np.ndarray, image: np.ndarray, factor: float) -> np.ndarray:
    return cv2.addWeighted(image, factor, degenerate, 1.0 - factor, _TRUNCATE)
