"""RandAugment's operations against Pillow: on every value, at edges and on tiny images."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from convit_jax.data.images import image_operations as ops
from convit_jax.data.sources import imagenet


def levels(low=0, high=255):
    """Return an image of every value from `low` to `high`, in a different order per channel."""
    values = np.arange(256) % (high - low + 1) + low
    channels = [np.roll(values[::step], shift) for step, shift in ((1, 0), (-1, 7), (1, 100))]
    return np.stack(channels, axis=-1).reshape(16, 16, 3).astype(np.uint8)


def apply_pillow(operation, image, *arguments):
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
def test_auto_contrast_equals_pillows(low, high):
    image = levels(low, high)
    np.testing.assert_array_equal(
        ops.auto_contrast(image), apply_pillow(ImageOps.autocontrast, image)
    )
    # Each channel by itself.
    image[..., 1] = 128
    np.testing.assert_array_equal(
        ops.auto_contrast(image), apply_pillow(ImageOps.autocontrast, image)
    )


@pytest.mark.parametrize("side", [1, 2, 15, 16, 17, 23, 40, 91])
def test_equalize_equals_pillows(side):
    """An image of few pixels is unchanged, since the step of its histogram would be 0."""
    rng = np.random.default_rng(side)
    for high in (1, 2, 5, 40, 256):
        image = rng.integers(0, high, (side, side, 3)).astype(np.uint8)
        np.testing.assert_array_equal(ops.equalize(image), apply_pillow(ImageOps.equalize, image))
    image = np.full((side, side, 3), 9, np.uint8)
    np.testing.assert_array_equal(ops.equalize(image), image)


@pytest.mark.parametrize("factor", [0.0, 0.1, 0.37, 0.9, 1.0, 1.3, 1.9])
def test_brightness_and_contrast_equal_pillows(factor):
    for image in (levels(), levels(3, 90)):
        for ours, theirs in (
            (ops.brightness, ImageEnhance.Brightness),
            (ops.contrast, ImageEnhance.Contrast),
        ):
            expected = apply_pillow(lambda i, f, theirs=theirs: theirs(i).enhance(f), image, factor)
            difference = np.abs(ours(image, factor).astype(int) - expected)
            # Pillow computes in float32: values near an integer may be rounded either way.
            assert difference.max() <= 1
            assert difference.mean() < 0.02


@pytest.mark.parametrize(("brighter", "mean"), [(46, 100), (49, 100), (50, 101), (54, 101)])
def test_the_mean_grey_is_rounded(brighter, mean):
    image = np.full((10, 10, 3), 100, np.uint8)
    image.reshape(-1, 3)[:brighter] = 101
    assert (ops.contrast(image, 0.0) == mean).all()


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (2, 9), (9, 2), (3, 3), (3, 9), (9, 3), (5, 7)])
@pytest.mark.parametrize("factor", [0.1, 0.55, 1.9])
def test_sharpness_of_tiny_images_equals_pillows(shape, factor):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    expected = apply_pillow(lambda i: ImageEnhance.Sharpness(i).enhance(factor), image)
    difference = ops.sharpness(image, factor).astype(int) - expected
    assert np.abs(difference).max() <= 1
    if min(shape) < 3:  # no pixel has neighbours on all sides
        np.testing.assert_array_equal(ops.sharpness(image, factor), image)


def test_interpolated_values_are_truncated_as_in_pillow():
    """There is no difference on average; with rounding it would be half a level."""
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    for ours, theirs in ((ops.colour, ImageEnhance.Color), (ops.sharpness, ImageEnhance.Sharpness)):
        for factor in (0.23, 0.61):
            expected = apply_pillow(lambda i, f, theirs=theirs: theirs(i).enhance(f), image, factor)
            difference = ours(image, factor).astype(int) - expected
            assert abs(difference.mean()) < 0.04


GEOMETRIC = {
    "shear_x": ((1, 0.31, 0), (0, 1, 0)),
    "shear_y": ((1, 0, 0), (-0.22, 1, 0)),
    "translate_x": ((1, 0, 0.31 * 40), (0, 1, 0)),
    "translate_y": ((1, 0, 0), (0, 1, -0.22 * 30)),
}


@pytest.mark.parametrize("name", GEOMETRIC)
def test_geometric_operations_equal_pillows_on_average(name):
    """On a smooth image, where interpolation differs little, and truncation would be visible."""
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


def test_pixels_from_outside_have_imagenets_mean_colour():
    rotated = ops.rotate(np.full((20, 20, 3), 255, np.uint8), 45.0)
    assert tuple(rotated[0, 0]) == tuple(round(255 * mean) for mean in imagenet.MEAN)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shift", [-3.0, -2.53, -2.5, -2.47, -0.53, -0.47, 0.47, 0.53, 2.47, 2.53])
def test_a_shift_fills_pixels_whose_centre_is_outside(axis, shift):
    """As in Pillow; the other pixels are interpolated with the outermost pixels repeated."""
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
