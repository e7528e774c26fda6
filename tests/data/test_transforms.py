import io

import numpy as np
import pytest
from PIL import Image

from convit_jax.data.transforms import EvalTransform, TrainTransform


def encode(array):
    buffer = io.BytesIO()
    Image.fromarray(array.squeeze()).save(buffer, "PNG")
    return buffer.getvalue()


def make_image(height=12, width=10, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels)).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_of_the_right_size_comes_through_as_it_is(channels):
    image = make_image(channels=channels)
    assert np.array_equal(EvalTransform((12, 10), channels)(encode(image)), image)
    plain = TrainTransform((12, 10), channels)
    assert np.array_equal(plain(encode(image), np.random.default_rng(0)), image)


def test_an_image_of_another_size_is_fitted():
    flat = np.full((30, 20, 3), 77, np.uint8)
    assert np.array_equal(EvalTransform((12, 10), 3)(encode(flat)), np.full((12, 10, 3), 77))


def test_grey_and_colour_are_what_the_model_takes():
    assert EvalTransform((12, 10), 1)(encode(make_image())).shape == (12, 10, 1)
    grey = make_image(channels=1)
    assert np.array_equal(EvalTransform((12, 10), 3)(encode(grey)), np.repeat(grey, 3, axis=-1))


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
    assert np.array_equal(transform(encode(image), Extreme()), image)


def test_a_quarter_turn_is_a_rotation_about_the_centre():
    image = make_image(12, 12)
    turned = TrainTransform((12, 12), 3, rotate=90.0)(encode(image), Extreme(rotate=1))
    difference = [np.abs(turned - np.rot90(image, k).astype(int)).max() for k in (1, 3)]
    assert min(difference) <= 1


def test_a_shift_moves_the_pixels_and_fills_with_black():
    image = make_image()
    moved = TrainTransform((12, 10), 3, translate=0.2)(encode(image), Extreme(x=1))
    assert np.array_equal(moved[:, :-2], image[:, 2:])
    assert not moved[:, -2:].any()
    moved = TrainTransform((12, 10), 3, translate=0.25)(encode(image), Extreme(y=-1))
    assert np.array_equal(moved[3:], image[:-3])


def test_zoom_enlarges_about_the_centre():
    ramp = np.repeat(np.arange(0, 120, 10, dtype=np.uint8)[:, None, None], 12, 1)
    larger = TrainTransform((12, 12), 1, zoom=1.0)(encode(ramp), Extreme(zoom=1))[:, 6, 0]
    assert np.abs(np.diff(larger.astype(int)) - 5).max() <= 1
    assert abs(int(larger[5]) + int(larger[6]) - 110) <= 2


def test_the_same_key_gives_the_same_view():
    image, transform = encode(make_image()), TrainTransform((12, 10), 3, rotate=30, zoom=0.2)

    def view(seed):
        return transform(image, np.random.default_rng(seed))

    assert np.array_equal(view(1), view(1))
    assert not np.array_equal(view(1), view(2))
