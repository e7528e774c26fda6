import dataclasses
import math

import numpy as np
import pytest
from scipy import ndimage

from convit_jax.config import template
from convit_jax.data.images.randaugment import parse_randaugment
from convit_jax.data.images.resizing import resize_exactly
from convit_jax.data.images.transforms import CROPS, EvalTransform, TrainTransform
from convit_jax.errors import InputError


def make_image(height=12, width=10, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels)).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_of_the_right_size_is_unchanged(channels):
    image = make_image(channels=channels)
    assert np.array_equal(EvalTransform((12, 10), channels)(image), image)
    plain = TrainTransform((12, 10), channels)
    assert np.array_equal(plain(image, np.random.default_rng(0)), image)


def test_an_image_of_another_size_is_resized():
    flat = np.full((30, 20, 3), 77, np.uint8)
    assert np.array_equal(EvalTransform((12, 10), 3)(flat), np.full((12, 10, 3), 77))


@pytest.mark.parametrize("transform", [EvalTransform, TrainTransform])
@pytest.mark.parametrize("channels", [0, 5])
def test_invalid_numbers_of_channels_are_input_errors(transform, channels):
    with pytest.raises(InputError, match=rf"^config\.model\.in_channels={channels}"):
        transform((12, 10), channels)


def test_the_crops_are_those_of_the_configuration():
    assert set(CROPS) == {"random_resized", "simple", "pad", "none"}


class FixedGenerator:
    """A random generator whose draws of the affine map are given; those omitted are 0."""

    def __init__(self, **draws):
        order = ("rotate", "zoom", "shear", "x", "y")
        self.draws = np.array([float(draws.get(name, 0.0)) for name in order])

    def uniform(self, low, high, size):
        assert (low, high, size) == (-1.0, 1.0, 5)
        return self.draws


def test_draws_of_0_change_nothing():
    image = make_image()
    transform = TrainTransform((12, 10), 3, rotate=90, zoom=0.5, shear=30, translate=0.5)
    assert np.array_equal(transform(image, FixedGenerator()), image)


def test_a_quarter_turn_is_a_rotation_about_the_centre():
    image = make_image(12, 12)
    rotated = TrainTransform((12, 12), 3, rotate=90.0)(image, FixedGenerator(rotate=1))
    difference = [np.abs(rotated - np.rot90(image, k).astype(int)).max() for k in (1, 3)]
    assert min(difference) <= 1


def test_a_shift_moves_the_pixels_and_fills_with_black():
    image = make_image()
    moved = TrainTransform((12, 10), 3, translate=0.2)(image, FixedGenerator(x=1))
    assert np.array_equal(moved[:, :-2], image[:, 2:])
    assert not moved[:, -2:].any()
    moved = TrainTransform((12, 10), 3, translate=0.25)(image, FixedGenerator(y=-1))
    assert np.array_equal(moved[3:], image[:-3])


def test_a_shear_moves_each_row_by_its_distance_from_the_centre():
    image = make_image(11, 30)
    moved = TrainTransform((11, 30), 3, shear=45.0)(image, FixedGenerator(shear=1))
    for row in range(11):
        shift = row - 5  # tan(45°) pixels per row
        source = slice(max(0, shift), min(30, 30 + shift))
        target = slice(max(0, -shift), min(30, 30 - shift))
        assert np.array_equal(moved[row, target], image[row, source])


@pytest.mark.parametrize("seed", range(5))
def test_rotation_zoom_shear_and_shift_are_combined_into_one_map(seed):
    """Against SciPy, with the product of the matrices: rotation, shear, zoom."""
    y, x = np.mgrid[:40, :50]
    image = (120 + 60 * np.sin(x / 6) + 60 * np.cos(y / 7)).astype(np.uint8)[..., None]
    ranges = {"rotate": 40.0, "zoom": 0.4, "shear": 25.0, "translate": 0.1}
    names = ("rotate", "zoom", "shear", "x", "y")
    draws = dict(zip(names, np.random.default_rng(seed).uniform(-1, 1, 5), strict=True))
    transform = TrainTransform((40, 50), 1, **ranges)
    actual = transform(image, FixedGenerator(**draws))[..., 0].astype(int)

    angle = math.radians(40.0 * draws["rotate"])
    rotation = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    shear = np.array([[1, math.tan(math.radians(25.0 * draws["shear"]))], [0, 1]])
    matrix = rotation @ shear / (1 + 0.4 * draws["zoom"])  # of (x, y)
    centre = np.array([49, 39]) / 2
    shift = np.array([0.1 * 50 * draws["x"], 0.1 * 40 * draws["y"]])
    offset = centre + shift - matrix @ centre
    row_first = matrix[::-1, ::-1], offset[::-1]  # SciPy's coordinates are (row, column)
    expected = ndimage.affine_transform(image[..., 0].astype(float), *row_first, order=1, cval=-1.0)
    inside = ndimage.binary_erosion(expected >= 0, iterations=2)
    assert inside.mean() > 0.3
    assert np.abs(actual - expected)[inside].max() <= 2
    outside = ndimage.binary_erosion(expected < 0, iterations=2)
    assert not actual[outside].any()


def test_zoom_enlarges_around_the_centre():
    ramp = np.repeat(np.arange(0, 120, 10, dtype=np.uint8)[:, None, None], 12, 1)
    enlarged = TrainTransform((12, 12), 1, zoom=1.0)(ramp, FixedGenerator(zoom=1))[:, 6, 0]
    assert np.abs(np.diff(enlarged.astype(int)) - 5).max() <= 1
    assert abs(int(enlarged[5]) + int(enlarged[6]) - 110) <= 2


def test_the_same_key_gives_the_same_view():
    image, transform = make_image(), TrainTransform((12, 10), 3, rotate=30, zoom=0.2)

    def view(seed):
        return transform(image, np.random.default_rng(seed))

    assert np.array_equal(view(1), view(1))
    assert not np.array_equal(view(1), view(2))


def test_pad_moves_an_image_by_whole_pixels_within_its_padding():
    image = make_image(12, 10) | 1  # without black pixels
    transform = TrainTransform((12, 10), 3, crop="pad", crop_padding=2)
    shifts = set()
    for seed in range(200):
        moved = transform(image, np.random.default_rng(seed))
        rows, columns = (np.flatnonzero(moved.any(axis=axis).any(-1)) for axis in (1, 0))
        top, left = (
            2 - (12 - len(rows)) * (1 if rows[0] else -1),
            2 - (10 - len(columns)) * (1 if columns[0] else -1),
        )
        shifts.add((top, left))
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
        assert np.array_equal(moved, padded[top : top + 12, left : left + 10])
    assert len(shifts) == 25


@pytest.mark.parametrize("crop", ["pad", "none"])
def test_an_image_of_another_size_is_resized_first(crop):
    transform = TrainTransform((12, 10), 3, crop=crop, crop_padding=0)
    image = make_image(30, 40)
    resized = transform(image, np.random.default_rng(0))
    assert np.array_equal(resized, resize_exactly(image, (12, 10)))


def test_defaults_equal_the_configurations():
    augment = template().augment
    for field in dataclasses.fields(TrainTransform):
        if field.name not in ("image_size", "channels"):
            assert field.default == augment[field.name], field.name
    defaults = TrainTransform((8, 8), 3)
    assert defaults.crop_scale == (0.08, 1.0)
    assert defaults.crop_ratio == pytest.approx((0.75, 1.3333333))
    assert defaults.crop_padding == 4


def test_half_of_the_images_are_flipped():
    image, transform = make_image(), TrainTransform((12, 10), 3, flip=0.5)
    views = [transform(image, np.random.default_rng(seed)) for seed in range(400)]
    flipped = sum(np.array_equal(view, image[:, ::-1]) for view in views)
    unflipped = sum(np.array_equal(view, image) for view in views)
    assert flipped + unflipped == 400
    assert 160 < flipped < 240


def test_the_full_recipe_gives_images_of_the_right_size():
    transform = TrainTransform(
        (32, 24), 3, crop="random_resized", flip=0.5, randaugment="rand-m9-mstd0.5-inc1"
    )
    image = make_image(50, 70)
    views = {transform(image, np.random.default_rng(seed)).tobytes() for seed in range(30)}
    assert {len(view) for view in views} == {32 * 24 * 3}
    assert len(views) == 30


def test_the_policy_is_applied_to_every_image_and_last():
    image, policy = make_image(32, 24), "rand-m9-n1-p1-inc1"
    transform = TrainTransform((32, 24), 3, randaugment=policy)
    num_changed = 0
    for seed in range(60):
        view = transform(image, np.random.default_rng(seed))
        expected = parse_randaugment(policy)(image, np.random.default_rng(seed))
        assert np.array_equal(view, expected)
        num_changed += not np.array_equal(view, image)
    assert num_changed > 40

    # The flip, with one draw, comes before the policy.
    view = TrainTransform((32, 24), 3, flip=1.0, randaugment=policy)(
        image, np.random.default_rng(5)
    )
    rng = np.random.default_rng(5)
    rng.random()
    assert np.array_equal(view, parse_randaugment(policy)(image[:, ::-1].copy(), rng))


def test_the_position_of_a_random_crop_is_uniform():
    """For crops of a fixed size from an image whose values are the pixels' positions."""
    y, x = np.mgrid[:64, :96].astype(np.uint8)
    image = np.stack([y, x, y], axis=-1)
    transform = TrainTransform(
        (39, 39), 3, crop="random_resized", crop_scale=(0.25, 0.25), crop_ratio=(1.0, 1.0)
    )
    rng, positions = np.random.default_rng(0), []
    for _ in range(2000):
        part = transform(image, rng)
        top, left = part[0, 0, :2]
        assert np.array_equal(part, image[top : top + 39, left : left + 39])
        positions.append((top, left))
    tops, lefts = np.array(positions, int).T
    assert set(tops) == set(range(64 - 39 + 1))
    assert set(lefts) == set(range(96 - 39 + 1))
    # Means of uniform draws, within five standard errors.
    assert abs(tops.mean() - 12.5) < 5 * 7.5 / 2000**0.5
    assert abs(lefts.mean() - 28.5) < 5 * 16.7 / 2000**0.5
    assert abs(np.corrcoef(tops, lefts)[0, 1]) < 0.1


def test_randaugment_requires_three_channels():
    with pytest.raises(InputError, match="randaugment='rand-m9' is for colour images"):
        TrainTransform((8, 8), 1, randaugment="rand-m9")
