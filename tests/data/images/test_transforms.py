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
def test_an_image_of_the_right_size_comes_through_as_it_is(channels):
    image = make_image(channels=channels)
    assert np.array_equal(EvalTransform((12, 10), channels)(image), image)
    plain = TrainTransform((12, 10), channels)
    assert np.array_equal(plain(image, np.random.default_rng(0)), image)


def test_an_image_of_another_size_is_fitted():
    flat = np.full((30, 20, 3), 77, np.uint8)
    assert np.array_equal(EvalTransform((12, 10), 3)(flat), np.full((12, 10, 3), 77))


@pytest.mark.parametrize("transform", [EvalTransform, TrainTransform])
@pytest.mark.parametrize("channels", [0, 5])
def test_a_number_of_channels_that_images_do_not_have(transform, channels):
    with pytest.raises(InputError, match=rf"^config\.model\.in_channels={channels}"):
        transform((12, 10), channels)


def test_every_crop_that_may_be_asked_for_is_one():
    assert set(CROPS) == {"random_resized", "pad", "none"}


class Extreme:
    """In place of a generator: always the end of the range, for one of the draws."""

    def __init__(self, **draws):
        order = ("rotate", "zoom", "shear", "x", "y")
        self.draws = np.array([float(draws.get(name, 0.0)) for name in order])

    def uniform(self, low, high, size):
        assert (low, high, size) == (-1.0, 1.0, 5)
        return self.draws


def test_no_draw_no_change():
    image = make_image()
    transform = TrainTransform((12, 10), 3, rotate=90, zoom=0.5, shear=30, translate=0.5)
    assert np.array_equal(transform(image, Extreme()), image)


def test_a_quarter_turn_is_a_rotation_about_the_centre():
    image = make_image(12, 12)
    turned = TrainTransform((12, 12), 3, rotate=90.0)(image, Extreme(rotate=1))
    difference = [np.abs(turned - np.rot90(image, k).astype(int)).max() for k in (1, 3)]
    assert min(difference) <= 1


def test_a_shift_moves_the_pixels_and_fills_with_black():
    image = make_image()
    moved = TrainTransform((12, 10), 3, translate=0.2)(image, Extreme(x=1))
    assert np.array_equal(moved[:, :-2], image[:, 2:])
    assert not moved[:, -2:].any()
    moved = TrainTransform((12, 10), 3, translate=0.25)(image, Extreme(y=-1))
    assert np.array_equal(moved[3:], image[:-3])


def test_a_shear_moves_each_row_by_its_distance_from_the_middle():
    image = make_image(11, 30)
    moved = TrainTransform((11, 30), 3, shear=45.0)(image, Extreme(shear=1))
    for row in range(11):
        way = row - 5  # by tan(45°) pixels a row
        there = slice(max(0, way), min(30, 30 + way))
        assert np.array_equal(moved[row, max(0, -way) : min(30, 30 - way)], image[row, there])


@pytest.mark.parametrize("seed", range(5))
def test_turning_zooming_shearing_and_shifting_together_is_one_map(seed):
    """Against SciPy, of the matrix put together from its parts: turned, sheared, then zoomed."""
    y, x = np.mgrid[:40, :50]
    image = (120 + 60 * np.sin(x / 6) + 60 * np.cos(y / 7)).astype(np.uint8)[..., None]
    most = {"rotate": 40.0, "zoom": 0.4, "shear": 25.0, "translate": 0.1}
    names = ("rotate", "zoom", "shear", "x", "y")
    draws = dict(zip(names, np.random.default_rng(seed).uniform(-1, 1, 5), strict=True))
    ours = TrainTransform((40, 50), 1, **most)(image, Extreme(**draws))[..., 0].astype(int)

    angle = math.radians(40.0 * draws["rotate"])
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    shear = np.array([[1, math.tan(math.radians(25.0 * draws["shear"]))], [0, 1]])
    matrix = turn @ shear / (1 + 0.4 * draws["zoom"])  # of (x, y)
    centre = np.array([49, 39]) / 2
    shift = np.array([0.1 * 50 * draws["x"], 0.1 * 40 * draws["y"]])
    offset = centre + shift - matrix @ centre
    flipped = matrix[::-1, ::-1], offset[::-1]  # SciPy counts (row, column)
    theirs = ndimage.affine_transform(image[..., 0].astype(float), *flipped, order=1, cval=-1.0)
    inside = ndimage.binary_erosion(theirs >= 0, iterations=2)
    assert inside.mean() > 0.3
    assert np.abs(ours - theirs)[inside].max() <= 2
    outside = ndimage.binary_erosion(theirs < 0, iterations=2)
    assert not ours[outside].any()


def test_zoom_enlarges_about_the_centre():
    ramp = np.repeat(np.arange(0, 120, 10, dtype=np.uint8)[:, None, None], 12, 1)
    larger = TrainTransform((12, 12), 1, zoom=1.0)(ramp, Extreme(zoom=1))[:, 6, 0]
    assert np.abs(np.diff(larger.astype(int)) - 5).max() <= 1
    assert abs(int(larger[5]) + int(larger[6]) - 110) <= 2


def test_the_same_key_gives_the_same_view():
    image, transform = make_image(), TrainTransform((12, 10), 3, rotate=30, zoom=0.2)

    def view(seed):
        return transform(image, np.random.default_rng(seed))

    assert np.array_equal(view(1), view(1))
    assert not np.array_equal(view(1), view(2))


def test_pad_moves_an_image_by_whole_pixels_within_its_padding():
    image = make_image(12, 10) | 1  # no black of its own
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
def test_an_image_of_another_size_is_fitted_before_anything_else(crop):
    transform = TrainTransform((12, 10), 3, crop=crop, crop_padding=0)
    image = make_image(30, 40)
    fitted = transform(image, np.random.default_rng(0))
    assert np.array_equal(fitted, resize_exactly(image, (12, 10)))


def test_defaults_are_those_of_the_configuration():
    """Written down in both places; here is a third."""
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
    straight = sum(np.array_equal(view, image) for view in views)
    assert flipped + straight == 400
    assert 160 < flipped < 240


def test_the_whole_recipe_makes_images_of_the_size():
    transform = TrainTransform(
        (32, 24), 3, crop="random_resized", flip=0.5, randaugment="rand-m9-mstd0.5-inc1"
    )
    image = make_image(50, 70)
    views = {transform(image, np.random.default_rng(seed)).tobytes() for seed in range(30)}
    assert {len(view) for view in views} == {32 * 24 * 3}
    assert len(views) == 30


def test_the_policy_is_applied_to_every_image_after_the_rest():
    image, policy = make_image(32, 24), "rand-m9-n1-p1-inc1"
    transform = TrainTransform((32, 24), 3, randaugment=policy)
    changed = 0
    for seed in range(60):
        view = transform(image, np.random.default_rng(seed))
        expected = parse_randaugment(policy)(image, np.random.default_rng(seed))
        assert np.array_equal(view, expected)
        changed += not np.array_equal(view, image)
    assert changed > 40

    # A flipped image is flipped first: one draw, then the policy's.
    view = TrainTransform((32, 24), 3, flip=1.0, randaugment=policy)(
        image, np.random.default_rng(5)
    )
    rng = np.random.default_rng(5)
    rng.random()
    assert np.array_equal(view, parse_randaugment(policy)(image[:, ::-1].copy(), rng))


def test_a_random_part_may_lie_anywhere():
    """Parts of one size from an image that says where each pixel is: all places, evenly."""
    y, x = np.mgrid[:64, :96].astype(np.uint8)
    image = np.stack([y, x, y], axis=-1)
    transform = TrainTransform(
        (39, 39), 3, crop="random_resized", crop_scale=(0.25, 0.25), crop_ratio=(1.0, 1.0)
    )
    rng, places = np.random.default_rng(0), []
    for _ in range(2000):
        part = transform(image, rng)
        top, left = part[0, 0, :2]
        assert np.array_equal(part, image[top : top + 39, left : left + 39])
        places.append((top, left))
    tops, lefts = np.array(places, int).T
    assert set(tops) == set(range(64 - 39 + 1))
    assert set(lefts) == set(range(96 - 39 + 1))
    # Means of uniform draws, within five of their deviations.
    assert abs(tops.mean() - 12.5) < 5 * 7.5 / 2000**0.5
    assert abs(lefts.mean() - 28.5) < 5 * 16.7 / 2000**0.5
    assert abs(np.corrcoef(tops, lefts)[0, 1]) < 0.1


def test_randaugment_is_for_colour():
    with pytest.raises(InputError, match="randaugment='rand-m9' is for colour images"):
        TrainTransform((8, 8), 1, randaugment="rand-m9")
