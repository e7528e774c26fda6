"""Preprocessing of images for evaluation: from a file, an array or a PIL image to model input."""

import dataclasses
import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from convit_jax.data.images.decoding import (
    BrokenImageError,
    check_channels,
    decode,
    pil_orientation,
    pixels_from_pil,
)
from convit_jax.data.images.image_metadata import apply_orientation
from convit_jax.data.images.resizing import resize_and_centre_crop
from convit_jax.data.sources import imagenet
from convit_jax.errors import InputError, boundary
from convit_jax.system.paths import user_path

ImageLike = str | os.PathLike | bytes | np.ndarray | Image.Image
# A single image is one of these, or an array: NumPy's, or a tensor of PyTorch or JAX.
_SINGLE_IMAGE_TYPES = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Parameters of the preprocessing; the defaults are the released models'.

    Attributes:
        image_size: (height, width) of the model's input, in pixels.
        crop_fraction: the crop's side as a share of the scaled image's.
        mean, std: of each channel of the training images, in units of full scale.
    """

    image_size: tuple[int, int] = (224, 224)
    crop_fraction: float = imagenet.CROP_FRACTION
    mean: tuple[float, ...] = imagenet.MEAN
    std: tuple[float, ...] = imagenet.STD

    def crop(
        self, image: ImageLike, name: str | None = None, *, rotate: bool = True, max_zoom: int = 1
    ) -> np.ndarray:
        """Scale an image and crop its centre.

        Args:
            image: a single image, as `preprocess` takes it.
            name: name of the image in messages; None for its path, if it has one.
            rotate: whether to rotate it by the orientation in its metadata; arrays have none.
            max_zoom: up to this many times as many pixels along each side, where the image has
                about as many: the same crop for people to look at.

        Returns:
            uint8 [height, width, channels], the sides multiplied by a whole number up to
            `max_zoom`.

        Raises:
            InputError: the file does not exist or is not an image, or the array is not one.
            MachineError: the machine could not read it.
        """
        is_path = isinstance(image, str | os.PathLike)
        name = name or (str(image) if is_path else "the image")
        with boundary(name):
            try:
                pixels = _pixels(image, len(self.mean), rotate)
            except BrokenImageError as error:
                raise InputError(f"{name}: {error}") from error
            height, width = self.image_size
            sharpness = min(pixels.shape[0] / height, pixels.shape[1] / width) * self.crop_fraction
            zoom = max(1, min(round(sharpness), max_zoom))
            return resize_and_centre_crop(pixels, (zoom * height, zoom * width), self.crop_fraction)

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """Normalise uint8 [..., channels] to float32: (pixels / 255 - mean) / std."""
        mean, std = (np.asarray(values, np.float32) for values in (self.mean, self.std))
        return (pixels.astype(np.float32) / 255 - mean) / std


def preprocess(
    image: ImageLike | Iterable[ImageLike],
    *,
    image_size: int | tuple[int, int] = 224,
    crop_fraction: float = imagenet.CROP_FRACTION,
    mean: tuple[float, ...] = imagenet.MEAN,
    std: tuple[float, ...] = imagenet.STD,
    exif_rotation: bool = True,
) -> np.ndarray:
    """Prepare images for a model: `model(convit_jax.preprocess("cat.jpg"))`.

    By default, the shorter side is scaled to 256 pixels by Pillow's antialiased bicubic filter, and
    the central 224 x 224 pixels are cropped and normalised, as in the evaluation of the released
    weights.

    Args:
        image: a path, the bytes of a file, a PIL image of any mode, or a uint8 array
            [H, W, channels] or [H, W]; or several of these, in a list, an array with one more
            dimension or any other iterable.
        image_size: side, or (height, width), of the model's input in pixels.
        crop_fraction: the crop's side as a share of the scaled image's, above 0, up to 1.
        mean, std: of each channel, in units of full scale; their length is the number of channels.
        exif_rotation: whether to rotate photographs by the orientation in their metadata.

    Returns:
        float32 [B, height, width, channels], with B = 1 for a single image.

    Raises:
        InputError: there is no image, an array has another type or shape, or a setting is invalid.
        MachineError: the machine could not read it.
    """
    preprocessing = _make_preprocessing(image_size, crop_fraction, mean, std)
    crops = [
        preprocessing.crop(single, name, rotate=exif_rotation)
        for single, name in _iterate_images(image)
    ]
    if not crops:
        raise InputError("no images: expected at least one")
    return preprocessing.normalise(np.stack(crops))


def _make_preprocessing(
    image_size: int | tuple[int, int],
    crop_fraction: float,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Preprocessing:
    with boundary("image_size, crop_fraction, mean or std"):
        size = (image_size,) * 2 if isinstance(image_size, int | np.integer) else tuple(image_size)
        mean, std = (tuple(float(value) for value in values) for values in (mean, std))
        check_channels(len(mean), "number of means")
        for valid, expected in (
            (len(size) == 2, f"image_size={image_size}: expected a side or (height, width)"),
            (min(size) >= 1, f"image_size={image_size}: expected at least 1 pixel"),
            (0 < crop_fraction <= 1, f"crop_fraction={crop_fraction}: expected above 0, up to 1"),
            (len(mean) == len(std), f"{len(mean)} means, {len(std)} std: expected equally many"),
            (np.all(np.isfinite(mean)), f"mean={mean}: expected finite numbers"),
            (np.all(np.isfinite(std)) and min(std) > 0, f"std={std}: expected numbers above 0"),
        ):
            if not valid:
                raise InputError(expected)
        return Preprocessing((int(size[0]), int(size[1])), crop_fraction, mean, std)


def _iterate_images(images: Any) -> Iterator[tuple[ImageLike, str | None]]:
    """Yield each image and its name in messages."""
    is_array = hasattr(images, "__array__")
    if isinstance(images, _SINGLE_IMAGE_TYPES) or (is_array and np.ndim(images) != 4):
        yield images, None
        return
    if not isinstance(images, Iterable):
        raise InputError(f"images of type {type(images).__name__}: expected {_EXPECTED}")
    for number, image in enumerate(images):
        yield image, str(image) if isinstance(image, str | os.PathLike) else f"image {number}"


_EXPECTED = (
    "a path, a file's bytes, a PIL image or a uint8 array [height, width, channels], or a list of "
    "these"
)


def _pixels(image: ImageLike, channels: int, rotate: bool) -> np.ndarray:
    """Return an image's pixels, uint8 [H, W, channels]."""
    if isinstance(image, str | os.PathLike):
        return _decode_file(user_path(image), channels, rotate)
    if isinstance(image, bytes | bytearray | memoryview):
        return decode(bytes(image), channels, rotate=rotate)
    if isinstance(image, Image.Image):
        return _decode_pil(image, channels, rotate)
    if not hasattr(image, "__array__"):
        raise BrokenImageError(f"of type {type(image).__name__}, expected {_EXPECTED}")
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = np.repeat(pixels, channels, axis=2)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != channels:
        raise BrokenImageError(
            f"{pixels.dtype} {pixels.shape}: expected uint8 [height, width, {channels}]"
        )
    if not pixels.size:
        raise BrokenImageError(f"{pixels.shape}: expected at least one pixel")
    return pixels


def _decode_pil(image: Image.Image, channels: int, rotate: bool) -> np.ndarray:
    image.load()
    pixels = pixels_from_pil(image, channels)
    # The orientation in memory counts, not the file's: the image may have been changed since.
    return apply_orientation(pixels, pil_orientation(image)) if rotate else pixels


def _decode_file(path: epath.Path, channels: int, rotate: bool) -> np.ndarray:
    try:
        encoded = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"no image at {path}: the file does not exist") from error
    return decode(encoded, channels, rotate=rotate)
