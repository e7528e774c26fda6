"""3-Augment, the colour jitter and the simple crop against Pillow's operations."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from sklearn.datasets import load_sample_image

from convit_jax.config import resolve
from convit_jax.data.images import image_operations as ops
from convit_jax.data.images.three_augment import colour_jitter, three_augment
from convit_jax.data.images.transforms import TrainTransform
from convit_jax.errors import InputError

PHOTOGRAPH = np.ascontiguousarray(load_sample_image("flower.jpg")[60:284, 200:424])
PILLOW = Image.fromarray(PHOTOGRAPH)


class Draws:
    """A random generator whose draws are given."""

    def __init__(self, choice=0, uniform=0.0, order=(0, 1, 2)):
        self.integers = lambda high: {3: choice}[high]
        self.uniform = lambda low, high, size=None: low + np.array(uniform) * (high - low)
        self.permutation = lambda count: np.array(order[:count])


def distance(actual, expected):
    return np.abs(np.asarray(actual, float) - np.asarray(expected)).mean()


def test_one_of_three_operations_is_pillows():
    grey = three_augment(PHOTOGRAPH, Draws(0))
    assert distance(grey, ImageOps.grayscale(PILLOW).convert("RGB")) < 0.5
    assert np.array_equal(three_augment(PHOTOGRAPH, Draws(1)), ImageOps.solarize(PILLOW))
    for share, sigma in ((0.0, 0.1), (0.5, 1.05), (1.0, 2.0)):
        expected = PILLOW.filter(ImageFilter.GaussianBlur(sigma))
        assert distance(three_augment(PHOTOGRAPH, Draws(2, share)), expected) < 0.6
        assert distance(expected, PILLOW) > 2 or not share


def test_the_three_are_equally_likely():
    grey, solarized = ops.greyscale(PHOTOGRAPH), ops.solarize(PHOTOGRAPH, 128)
    rng, counts = np.random.default_rng(0), [0, 0, 0]
    for _ in range(300):
        image = three_augment(PHOTOGRAPH, rng)
        is_grey, is_solarized = np.array_equal(image, grey), np.array_equal(image, solarized)
        counts[0 if is_grey else 1 if is_solarized else 2] += 1
    assert min(counts) > 80  # 100 are expected, with a standard deviation of 8


def test_the_jitter_enhances_in_random_order_within_its_strength():
    names = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    results = []
    for order in ((0, 1, 2), (2, 1, 0)):
        expected = PILLOW
        for index in order:
            expected = names[index](expected).enhance((0.7, 1.3, 1.15)[index])
        jittered = colour_jitter(PHOTOGRAPH, 0.3, Draws(uniform=(0.0, 1.0, 0.75), order=order))
        assert distance(jittered, expected) < 0.9
        results.append(jittered)
    assert distance(*results) > 2


@pytest.mark.parametrize("shape", [(300, 400), (400, 300), (100, 130), (224, 224), (1, 50)])
def test_the_simple_crop_is_a_part_of_the_scaled_and_reflected_image(shape):
    """For any position, borders included: Pillow scales the whole image, NumPy pads it."""
    image = np.ascontiguousarray(load_sample_image("china.jpg")[: shape[0], : shape[1]])
    transform = TrainTransform((32, 32), 3, crop="simple", crop_padding=4)
    height, width = (max(32, int(32 * side / min(shape) + 1e-6)) for side in shape)
    whole = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    padded = np.pad(whole, ((4, 4), (4, 4), (0, 0)), mode="reflect").astype(int)

    class Corner:
        def __init__(self, *shares):
            self.shares = list(shares)

        def integers(self, count):
            return int(self.shares.pop(0) * (count - 1))

    for y, x in ((0.0, 0.0), (1.0, 1.0), (0.5, 0.3)):
        top, left = int(y * (height - 32 + 8)), int(x * (width - 32 + 8))
        difference = padded[top : top + 32, left : left + 32] - transform(image, Corner(y, x))
        assert np.abs(difference).max() <= 1


def test_a_view_is_a_function_of_its_generator():
    transform = TrainTransform(
        (32, 24), 3, crop="simple", flip=0.5, three_augment=True, colour_jitter=0.3
    )
    views = [transform(PHOTOGRAPH, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert views[0].shape == (32, 24, 3)
    assert np.array_equal(views[0], views[1])
    assert not np.array_equal(views[0], views[2])


@pytest.mark.parametrize("option", [{"three_augment": True}, {"colour_jitter": 0.3}])
def test_grey_images_are_refused(option):
    (name,) = option
    with pytest.raises(InputError, match=rf"augment\.{name}=.* is for colour images"):
        TrainTransform((8, 8), 1, **option)


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ({"three_augment": True, "randaugment": "rand-m9"}, "three_augment=True: expected False, "),
        ({"colour_jitter": 1.5}, "colour_jitter=1.5: expected 0 to 1"),
        ({"crop": "simple", "crop_padding": 224}, "crop_padding=224: expected less than"),
        ({"crop": "simpel"}, "crop='simpel': expected 'random_resized' or 'simple' or"),
    ],
)
def test_a_mistake_is_one_sentence(augment, message):
    with pytest.raises(InputError, match=message):
        resolve({"augment": augment})
