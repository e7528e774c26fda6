import inspect
import io

import cv2
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

import convit_jax
from convit_jax.data.images.preprocessing import Preprocessing
from convit_jax.data.sources import imagenet
from convit_jax.data.sources.image_paths import find_images
from convit_jax.errors import InputError
from convit_jax.models import Architecture
from tests.field.builders import encode


@pytest.fixture
def photograph():
    return load_sample_image("flower.jpg")


def test_pixels_equal_the_references(photograph, reference_data):
    with np.load(reference_data / "eval_preprocessing.npz") as reference:
        expected = (reference["flower"] / 255 - imagenet.MEAN) / imagenet.STD
    pixels = convit_jax.preprocess(photograph)
    assert (pixels.shape, pixels.dtype) == ((1, 224, 224, 3), np.float32)
    # One grey level, in units of the smallest standard deviation.
    assert np.abs(pixels[0] - expected).max() <= 1 / 255 / min(imagenet.STD) + 1e-6


def test_all_kinds_of_input_give_the_same_result(photograph, tmp_path):
    path = tmp_path / "flower.png"
    Image.fromarray(photograph).save(path)
    expected = convit_jax.preprocess(photograph)
    for image in (
        path,
        str(path),
        path.read_bytes(),
        Image.open(path),
        Image.fromarray(photograph),
    ):
        assert np.array_equal(convit_jax.preprocess(image), expected)
    batch = convit_jax.preprocess([path, photograph[::-1]], image_size=(64, 96))
    assert batch.shape == (2, 64, 96, 3)


def test_grey_images_and_rotated_ones(photograph, tmp_path):
    grey = photograph[..., 0]
    assert np.array_equal(
        convit_jax.preprocess(grey), convit_jax.preprocess(np.stack([grey] * 3, axis=-1))
    )
    assert convit_jax.preprocess(grey, mean=(0.5,), std=(0.2,)).shape == (1, 224, 224, 1)
    exif = Image.Exif()
    exif[0x0112] = 3  # rotated by 180 degrees
    file = encode(Image.fromarray(photograph), "PNG", exif=exif)
    rotated = convit_jax.preprocess(Image.open(io.BytesIO(file)))
    assert np.array_equal(rotated, convit_jax.preprocess(photograph[::-1, ::-1].copy()))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8, 3)), r"float64 \(8, 8, 3\): expected uint8 \[height, width, 3\]"),
        (np.zeros((3, 8, 8), np.uint8), r"uint8 \(3, 8, 8\): expected"),
        (b"no image", "not an image of a known format"),
        ("nowhere.jpg", "no image at nowhere.jpg"),
    ],
)
def test_invalid_images_are_input_errors(image, message):
    with pytest.raises(InputError, match=message):
        convit_jax.preprocess(image)


def test_files_folders_and_patterns_yield_each_image_once(tmp_path):
    for name in ("b.jpg", "a.png", "deep/er/c.JPEG", "note.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    root = str(tmp_path)
    assert find_images([root]) == [f"{root}/{n}" for n in ("a.png", "b.jpg", "deep/er/c.JPEG")]
    assert find_images([f"{root}/*.jpg", root])[0] == f"{root}/b.jpg"
    assert len(find_images([f"{root}/*.jpg", root])) == 3
    assert find_images(["missing.jpg"]) == ["missing.jpg"]  # reported when it is read
    with pytest.raises(InputError, match=r"no file matches .*\*.gif"):
        find_images([f"{root}/*.gif"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no images .* in the folder"):
        find_images([f"{root}/empty"])


def test_defaults_are_imagenets():
    """The number of classes is a default in `models`, too, which may not import `data`."""
    defaults = Preprocessing()
    assert defaults.crop_fraction == imagenet.CROP_FRACTION
    assert (defaults.mean, defaults.std) == (imagenet.MEAN, imagenet.STD)
    assert len(imagenet.class_ids()) == imagenet.NUM_CLASSES
    for function in (Architecture, convit_jax.create_model):
        parameter = inspect.signature(function).parameters["num_classes"]
        assert parameter.default == imagenet.NUM_CLASSES


@pytest.mark.parametrize(("size", "zoom"), [((1000, 1300), 2), ((60, 80), 1), ((145, 210), 1)])
def test_a_sharper_crop_shows_the_same(size, zoom):
    image = cv2.resize(np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8), size[::-1])
    preprocessing = Preprocessing((96, 128), 0.875)
    crop, sharper = preprocessing.crop(image), preprocessing.crop(image, max_zoom=2)
    assert sharper.shape == (zoom * 96, zoom * 128, 3)
    averaged = sharper.reshape(96, zoom, 128, zoom, 3).mean(axis=(1, 3))
    assert np.abs(averaged - crop).mean() < 1.5
    shifted = np.roll(averaged, 3, axis=1)
    assert np.abs(shifted - crop).mean() > 5
