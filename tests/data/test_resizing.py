import numpy as np
import pytest
from sklearn.datasets import load_sample_image

from convit_jax.data.resizing import (
    random_resized_crop,
    resize_and_centre_crop,
    resize_exactly,
    resize_fast,
)


@pytest.mark.parametrize("name", ["china", "flower"])
def test_the_evaluations_view_is_pytorchs(name, reference_data):
    expected = np.load(reference_data / "eval_preprocessing.npz")[name]
    ours = resize_and_centre_crop(load_sample_image(f"{name}.jpg"), (224, 224), 0.875)
    assert np.abs(ours.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("shape", "size", "crop"),
    [((30, 50), (16, 16), 0.875), ((50, 30), (16, 24), 0.9), ((7, 9), (32, 32), 1.0)],
)
def test_any_shape_is_scaled_and_cut_to_size(shape, size, crop):
    flat = np.full((*shape, 3), 77, np.uint8)
    assert np.array_equal(resize_and_centre_crop(flat, size, crop), np.full((*size, 3), 77))


def test_the_centre_is_kept_and_the_aspect_too():
    ramp = np.repeat(np.arange(0, 200, 2, dtype=np.uint8)[None, :, None], 50, 0)
    middle = resize_and_centre_crop(ramp, (50, 50), 1.0)
    assert np.array_equal(middle, ramp[:, 25:75])


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


def test_the_fast_resize_enlarges_as_pillow_does():
    image = load_sample_image("flower.jpg")[:100, :80]
    difference = np.abs(
        resize_fast(image, (224, 224)).astype(int) - resize_exactly(image, (224, 224))
    )
    assert difference.mean() < 1


def test_random_boxes_have_the_shares_and_ratios_asked_for():
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
    # Uniform in area, up to where not every ratio fits.
    fitting = area[area < 0.55]
    assert abs(np.mean(fitting < 0.315) - 0.5) < 0.03
    assert abs(np.mean(np.log(ratio))) < 0.06  # wide ones fit a wide image better


@pytest.mark.parametrize(("shape", "expected"), [((10, 1000), (10, 13)), ((1000, 9), (12, 9))])
def test_where_no_box_fits_the_centre_is_taken(shape, expected):
    rng = np.random.default_rng(0)
    top, left, height, width = random_resized_crop(shape, (0.9, 1.0), (3 / 4, 4 / 3), rng)
    assert (height, width) == expected
    assert abs(2 * top + height - shape[0]) <= 1
    assert abs(2 * left + width - shape[1]) <= 1
