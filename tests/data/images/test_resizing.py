import math

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from convit_jax.data.images import resizing
from convit_jax.data.images.resizing import (
    random_resized_crop,
    resize_and_centre_crop,
    resize_exactly,
    resize_fast,
)


@pytest.mark.parametrize("name", ["china", "flower"])
def test_resize_and_centre_crop_equals_pytorchs(name, reference_data):
    expected = np.load(reference_data / "eval_preprocessing.npz")[name]
    actual = resize_and_centre_crop(load_sample_image(f"{name}.jpg"), (224, 224), 0.875)
    assert np.abs(actual.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("shape", "size", "crop"),
    [((30, 50), (16, 16), 0.875), ((50, 30), (16, 24), 0.9), ((7, 9), (32, 32), 1.0)],
)
def test_any_shape_is_scaled_and_cropped_to_size(shape, size, crop):
    flat = np.full((*shape, 3), 77, np.uint8)
    assert np.array_equal(resize_and_centre_crop(flat, size, crop), np.full((*size, 3), 77))


def test_the_centre_is_cropped_and_the_aspect_ratio_preserved():
    ramp = np.repeat(np.arange(0, 200, 2, dtype=np.uint8)[None, :, None], 50, 0)
    centre = resize_and_centre_crop(ramp, (50, 50), 1.0)
    assert np.array_equal(centre, ramp[:, 25:75])


@pytest.mark.parametrize("shrinkage", [1.05, 1.2, 1.5, 1.9, 2.5, 3.5])
@pytest.mark.parametrize("name", ["china", "flower"])
def test_the_fast_resize_is_antialiased(name, shrinkage):
    """Within two grey levels of Pillow on average; OpenCV's bicubic alone is up to seven away."""
    image = load_sample_image(f"{name}.jpg")[:420, :630]
    size = (int(420 / shrinkage), int(630 / shrinkage))
    difference = np.abs(resize_fast(image, size).astype(int) - resize_exactly(image, size))
    print(f"{name} {shrinkage}: mean {difference.mean():.2f}")
    assert difference.mean() < 2
    assert np.percentile(difference, 99) < 13


def test_the_fast_resize_enlarges_like_pillow():
    image = load_sample_image("flower.jpg")[:100, :80]
    difference = np.abs(
        resize_fast(image, (224, 224)).astype(int) - resize_exactly(image, (224, 224))
    )
    assert difference.mean() < 1


def test_random_boxes_have_the_requested_shares_and_ratios():
    rng = np.random.default_rng(0)
    boxes = np.array(
        [random_resized_crop((375, 500), (0.08, 1.0), (3 / 4, 4 / 3), rng) for _ in range(4000)]
    )
    top, left, height, width = boxes.T
    assert min(top.min(), left.min()) >= 0
    assert (top + height).max() <= 375
    assert (left + width).max() <= 500
    area, ratio = height * width / (375 * 500), width / height
    assert 0.078 < area.min() < 0.1
    assert ratio.min() > 0.74
    assert ratio.max() < 1.35
    # Uniform in area, below the areas for which not every ratio fits.
    fitting = area[area < 0.55]
    assert abs(np.mean(fitting < 0.315) - 0.5) < 0.03
    assert abs(np.mean(np.log(ratio))) < 0.06  # wide ones fit a wide image better


@pytest.mark.parametrize(("shape", "expected"), [((10, 1000), (10, 13)), ((1000, 9), (12, 9))])
def test_if_no_box_fits_the_centre_is_returned(shape, expected):
    rng = np.random.default_rng(0)
    top, left, height, width = random_resized_crop(shape, (0.9, 1.0), (3 / 4, 4 / 3), rng)
    assert (height, width) == expected
    assert abs(2 * top + height - shape[0]) <= 1
    assert abs(2 * left + width - shape[1]) <= 1


def noise(height, width, channels):
    return np.random.default_rng(1).integers(0, 256, (height, width, channels)).astype(np.uint8)


def pillow_resize(image, size):
    """Resize each channel by itself with Pillow."""
    scaled = [
        Image.fromarray(np.ascontiguousarray(image[..., c])).resize(
            (size[1], size[0]), Image.Resampling.BICUBIC
        )
        for c in range(image.shape[2])
    ]
    return np.stack([np.asarray(channel) for channel in scaled], axis=-1)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_each_channel_is_scaled_like_pillow(channels):
    image = noise(13, 19, channels)
    for part in (image, image[::-1, ::2], np.asfortranarray(image)):  # in any memory layout
        for size in ((7, 5), (13, 30), (29, 19)):
            np.testing.assert_array_equal(resize_exactly(part, size), pillow_resize(part, size))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_an_image_of_the_right_size_is_returned_unchanged(channels):
    image = noise(13, 19, channels)
    for size in ((13, 19), [13, 19]):
        assert resize_exactly(image, size) is image
        assert resize_fast(image, size) is image
    np.testing.assert_array_equal(resize_and_centre_crop(image, (13, 19), 1.0), image)
    square = noise(9, 9, 3)
    assert resize_exactly(square, (9, 12)).shape == (9, 12, 3)
    assert resize_exactly(square, (12, 9)).shape == (12, 9, 3)


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("size", [(40, 40), (20, 11), (5, 33), (33, 5), (3, 4), (60, 10)])
def test_the_fast_resize_scales_each_channel_by_itself(channels, size):
    image = noise(45, 41, 4)
    expected = np.concatenate(
        [resize_fast(image[..., [c] * 3], size)[..., :1] for c in range(4)], 2
    )
    actual = resize_fast(np.ascontiguousarray(image[..., :channels]), size)
    assert actual.shape == (*size, channels)
    assert np.abs(actual.astype(int) - expected[..., :channels]).max() <= 1


SIDES = [(100, 100), (100, 50), (100, 49), (100, 33), (101, 25), (103, 24), (107, 16), (211, 10)]


@pytest.mark.parametrize(("height", "to_height"), SIDES)
@pytest.mark.parametrize(("width", "to_width"), [*SIDES, (20, 61)])
def test_the_fast_resize_does_not_shift_the_image(height, to_height, width, to_width):
    """A ramp stays a ramp, for any boxes that are averaged first and any number of pixels."""
    y, x = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    ramp = 20 + 100 * y[:, None, None] + np.array([100, 50, -10]) * x[None, :, None]
    actual = resize_fast(np.round(ramp).astype(np.uint8), (to_height, to_width)).astype(float)
    y, x = (np.arange(to_height) + 0.5) / to_height, (np.arange(to_width) + 0.5) / to_width
    expected = 20 + 100 * y[:, None, None] + np.array([100, 50, -10]) * x[None, :, None]
    difference = (actual - expected)[2:-2, 2:-2]  # the ramp bends at the border
    assert np.abs(difference).max() <= 1.6
    assert abs(difference.mean()) < 0.3


@pytest.mark.parametrize(
    "shrinkage", [(1, 3.9), (3.9, 1), (2.5, 2.5), (4.4, 4.4), (6.5, 1.3), (9, 9)]
)
def test_the_fast_resize_is_close_to_pillows_at_any_shrinkage(shrinkage):
    """Neither blurred nor aliased: close to Pillow's result, with the same amount of detail."""
    image = load_sample_image("china.jpg")[:396, :594]
    size = (round(396 / shrinkage[0]), round(594 / shrinkage[1]))
    actual = resize_fast(image, size).astype(float)
    expected = pillow_resize(image, size).astype(float)
    assert np.abs(actual - expected).mean() < 2.2
    for axis in (0, 1):
        detail = (
            np.abs(np.diff(actual, axis=axis)).mean() / np.abs(np.diff(expected, axis=axis)).mean()
        )
        assert 0.9 < detail < 1.06


def crop_of_the_whole(image, size, fraction):
    """Scale the whole image to whole pixels, columns first, then rows; crop the centre."""
    sides = [math.floor(side / fraction) for side in size]
    scale = max(side / length for side, length in zip(sides, image.shape, strict=False))
    scaled = [max(int(image.shape[axis] * scale + 1e-6), sides[axis]) for axis in (0, 1)]
    whole = pillow_resize(pillow_resize(image, (image.shape[0], scaled[1])), scaled)
    top, left = (round((scaled[axis] - size[axis]) / 2) for axis in (0, 1))
    return whole[top : top + size[0], left : left + size[1]]


@pytest.mark.parametrize("library", ["vector instructions", "Pillow"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "shape",
    [
        *[(375, 500), (500, 375), (333, 500), (500, 333), (120, 160), (64, 64), (257, 256)],
        *[(30, 420), (30, 480), (480, 30), (1200, 30), (30, 1200)],
    ],
)
def test_the_crop_is_that_of_the_whole_scaled_image(shape, channels, library, monkeypatch):
    """Except for few values, by one grey level, whichever library computes it."""
    image = noise(*shape, channels)
    if library == "Pillow":
        monkeypatch.setattr(resizing, "simd", None)
    elif resizing.simd is None:
        pytest.skip("cykooz.resizer is not available for this platform")
    for size, fraction in (((224, 224), 0.875), ((20, 20), 1.0), ((48, 30), 0.8)):
        actual = resize_and_centre_crop(image, size, fraction)
        difference = np.abs(actual.astype(int) - crop_of_the_whole(image, size, fraction))
        assert difference.max() <= 1
        assert np.count_nonzero(difference) <= 2 + difference.size / 250


def test_the_size_before_cropping_is_rounded_down(monkeypatch):
    monkeypatch.setattr(resizing, "simd", None)  # Pillow's values, exactly
    image = noise(40, 40, 3)
    actual = resize_and_centre_crop(image, (20, 20), 0.9)  # 22.2
    np.testing.assert_array_equal(actual, pillow_resize(image, (22, 22))[1:21, 1:21])


def test_halves_are_rounded_up_like_pillows():
    """Scaled to a half, the weights are multiples of 1/256, so half of the values are halves."""
    image = np.repeat(noise(1, 500, 3) & 128, 400, axis=0)
    actual = resize_and_centre_crop(image, (200, 200), 1.0)
    np.testing.assert_array_equal(actual, crop_of_the_whole(image, (200, 200), 1.0))


@pytest.mark.parametrize("long_axis", [0, 1])
def test_the_part_of_a_large_image_includes_the_filters_radius(long_axis):
    """The image is scaled to an eighth: the radius is sixteen pixels."""
    image = noise(*((240, 4400, 1) if long_axis else (4400, 240, 1)))
    actual = resize_and_centre_crop(image, (30, 30), 1.0)
    np.testing.assert_array_equal(actual, crop_of_the_whole(image, (30, 30), 1.0))


def test_boxes_of_one_pixel_and_of_a_full_side_are_possible_but_not_empty_ones():
    def boxes(shape, scale, ratio):
        rng = np.random.default_rng(0)
        result = {random_resized_crop(shape, (scale, scale), ratio, rng) for _ in range(50)}
        assert {type(number) for box in result for number in box} == {int}
        return result

    assert {box[2:] for box in boxes((10, 10), 0.01, (1.0, 1.0))} == {(1, 1)}
    assert all(min(box[2:]) > 0 for box in boxes((10, 10), 1e-6, (0.9, 1.1)))
    for ratio in (0.2, 5.0):  # one pixel by less than half a pixel
        assert all(min(box[2:]) > 0 for box in boxes((10, 10), 0.003, (ratio, ratio)))
    for shape, expected in (((10, 1000), (0, 493, 10, 13)), ((1000, 9), (494, 0, 12, 9))):
        assert boxes(shape, 1.0, (3 / 4, 4 / 3)) == {expected}
    for shape, expected, ratio in (((10, 1000), (10, 50), 5.0), ((1000, 10), (50, 10), 0.2)):
        random_boxes = boxes(shape, 0.05, (ratio, ratio))
        assert {box[2:] for box in random_boxes} == {expected}
        assert len(random_boxes) > 10  # anywhere along the other side
