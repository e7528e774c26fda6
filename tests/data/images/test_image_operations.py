"""RandAugment's operations where they are exact: on every value, at edges and on tiny images."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from convit_jax.data.images import image_operations as ops
from convit_jax.data.images.preprocessing import IMAGENET_MEAN


def levels(low=0, high=255):
    """Every value from `low` to `high`, in another order in each channel."""
    values = np.arange(256) % (high - low + 1) + low
    channels = [np.roll(values[::way], turn) for way, turn in ((1, 0), (-1, 7), (1, 100))]
    return np.stack(channels, axis=-1).reshape(16, 16, 3).astype(np.uint8)


def pillows(operation, image, *arguments):
    return np.asarray(operation(Image.fromarray(image), *arguments))


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (0, 255),
        (0, 0),
        (255, 255),
        (7, 7),
        (7, 8),
        (7, 9),
        (0, 254),
        (1, 255),
        (30, 41),
        (100, 227),
    ],
)
def test_contrast_is_stretched_as_pillow_does(low, high):
    image = levels(low, high)
    np.testing.assert_array_equal(ops.auto_contrast(image), pillows(ImageOps.autocontrast, image))
    # Each channel by itself.
    image[..., 1] = 128
    np.testing.assert_array_equal(ops.auto_contrast(image), pillows(ImageOps.autocontrast, image))


@pytest.mark.parametrize("side", [1, 2, 15, 16, 17, 23, 40, 91])
def test_histograms_are_spread_as_pillow_does(side):
    """Few pixels leave an image as it is: a step of its histogram would be none."""
    rng = np.random.default_rng(side)
    for high in (1, 2, 5, 40, 256):
        image = rng.integers(0, high, (side, side, 3)).astype(np.uint8)
        np.testing.assert_array_equal(ops.equalize(image), pillows(ImageOps.equalize, image))
    image = np.full((side, side, 3), 9, np.uint8)
    np.testing.assert_array_equal(ops.equalize(image), image)


@pytest.mark.parametrize("factor", [0.0, 0.1, 0.37, 0.9, 1.0, 1.3, 1.9])
def test_brightness_and_contrast_are_pillows(factor):
    for image in (levels(), levels(3, 90)):
        for ours, theirs in (
            (ops.brightness, ImageEnhance.Brightness),
            (ops.contrast, ImageEnhance.Contrast),
        ):
            expected = pillows(lambda i, f, theirs=theirs: theirs(i).enhance(f), image, factor)
            difference = np.abs(ours(image, factor).astype(int) - expected)
            # Pillow computes in float32: values at a whole number fall to either side of it.
            assert difference.max() <= 1
            assert difference.mean() < 0.02


@pytest.mark.parametrize(("brighter", "mean"), [(46, 100), (49, 100), (50, 101), (54, 101)])
def test_the_mean_grey_is_rounded(brighter, mean):
    image = np.full((10, 10, 3), 100, np.uint8)
    image.reshape(-1, 3)[:brighter] = 101
    assert (ops.contrast(image, 0.0) == mean).all()


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (2, 9), (9, 2), (3, 3), (3, 9), (9, 3), (5, 7)])
@pytest.mark.parametrize("factor", [0.1, 0.55, 1.9])
def test_sharpness_of_tiny_images_is_pillows(shape, factor):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    expected = pillows(lambda i: ImageEnhance.Sharpness(i).enhance(factor), image)
    difference = ops.sharpness(image, factor).astype(int) - expected
    assert np.abs(difference).max() <= 1
    if min(shape) < 3:  # nothing has neighbours all around
        np.testing.assert_array_equal(ops.sharpness(image, factor), image)


def test_values_in_between_are_cut_off_as_pillow_does():
    """On average there is no difference: rounding would be half a level brighter."""
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    for ours, theirs in ((ops.colour, ImageEnhance.Color), (ops.sharpness, ImageEnhance.Sharpness)):
        for factor in (0.23, 0.61):
            expected = pillows(lambda i, f, theirs=theirs: theirs(i).enhance(f), image, factor)
            difference = ours(image, factor).astype(int) - expected
            assert abs(difference.mean()) < 0.04


GEOMETRIC = {
    "shear_x": ((1, 0.31, 0), (0, 1, 0)),
    "shear_y": ((1, 0, 0), (-0.22, 1, 0)),
    "translate_x": ((1, 0, 0.31 * 40), (0, 1, 0)),
    "translate_y": ((1, 0, 0), (0, 1, -0.22 * 30)),
}


@pytest.mark.parametrize("name", GEOMETRIC)
def test_geometric_operations_are_pillows_on_average(name):
    """On a smooth image, where interpolation differs little: what differs is cut off or rounded."""
    y, x = np.mgrid[:30, :40]
    waves = [np.sin(x / 3 + c) * np.cos(y / 4 - c) for c in range(3)]
    image = (127 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)
    row_x, row_y = GEOMETRIC[name]
    share = {"shear_x": 0.31, "shear_y": -0.22, "translate_x": 0.31, "translate_y": -0.22}[name]
    expected = np.asarray(
        Image.fromarray(image).transform(
            (40, 30), Image.AFFINE, (*row_x, *row_y), Image.BICUBIC, fillcolor=ops.FILL
        )
    )
    difference = getattr(ops, name)(image, share).astype(int) - expected
    assert np.abs(difference).max() <= 2
    assert np.abs(difference).mean() < 0.12
    assert abs(difference.mean()) < 0.05


def test_what_comes_in_from_outside_is_imagenets_mean_colour():
    turned = ops.rotate(np.full((20, 20, 3), 255, np.uint8), 45.0)
    assert tuple(turned[0, 0]) == tuple(round(255 * mean) for mean in IMAGENET_MEAN)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shift", [-3.0, -2.53, -2.5, -2.47, -0.53, -0.47, 0.47, 0.53, 2.47, 2.53])
def test_a_shift_fills_what_has_its_centre_outside(axis, shift):
    """As Pillow does, and in between interpolates with the outermost pixels repeated."""
    image = np.random.default_rng(1).integers(0, 256, (12, 12, 3)).astype(np.uint8)
    shifted = ops._translate(image, shift, axis)
    row_x, row_y = (1, 0, 0), (0, 1, 0)
    row_x, row_y = ((1, 0, shift), row_y) if axis == 1 else (row_x, (0, 1, shift))
    expected = np.asarray(
        Image.fromarray(image).transform(
            (12, 12), Image.AFFINE, (*row_x, *row_y), Image.BICUBIC, fillcolor=ops.FILL
        )
    )
    assert np.abs(shifted.astype(int) - expected).max() <= 1
    centres = np.arange(12) + 0.5 + shift
    outside = (centres < 0) | (centres >= 12)
    filled = (shifted == np.uint8(ops.FILL)).all(axis=(1 - axis, 2))
    np.testing.assert_array_equal(filled, outside)
