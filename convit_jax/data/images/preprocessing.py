"""From an image, wherever it comes from, to what a model takes: the road of evaluation."""

import dataclasses
import numbers
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
    orientation_in_pillow,
    pixels_of,
)
from convit_jax.data.images.image_metadata import turn
from convit_jax.data.images.resizing import resize_and_centre_crop
from convit_jax.errors import InputError, boundary
from convit_jax.system.paths import user_path

# Image statistics of ImageNet (red, green, blue), in units of full scale.
IMAGENET_EXAMPLES = 1_281_167  # for training
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

ImageLike = str | os.PathLike | bytes | np.ndarray | Image.Image
# Anything else is asked whether NumPy can take it for an array: tensors of PyTorch and JAX are.
_ONE_IMAGE = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How images become a model's input; the defaults are the released models'.

    Attributes:
        image_size: (height, width) of what the model sees, in pixels.
        crop_fraction: share of the scaled image's side that is kept: 224 of 256.
        mean, std: of the images, for each channel, in units of full scale.
    """

    image_size: tuple[int, int] = (224, 224)
    crop_fraction: float = 0.875
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def crop(self, image: ImageLike, name: str | None = None, *, rotate: bool = True) -> np.ndarray:
        """Scales an image and cuts out its centre: → uint8 [height, width, channels].

        Args:
            image: as `preprocess` takes it.
            name: what to call it in messages; None for its path, where it has one.
            rotate: whether to turn it upright as its metadata say; arrays have none.

        Raises:
            InputError: a file that is not there or is no image, or an array that is none.
            MachineError: the machine could not read it.
        """
        is_path = isinstance(image, str | os.PathLike)
        name = name or (str(image) if is_path else "the image")
        with boundary(name):
            try:
                pixels = _pixels(image, len(self.mean), rotate)
            except BrokenImageError as error:
                raise InputError(f"{name}: {error}") from error
            return resize_and_centre_crop(pixels, self.image_size, self.crop_fraction)

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """Uint8 [..., channels] → float32, (pixels / 255 - mean) / std."""
        mean, std = (np.asarray(values, np.float32) for values in (self.mean, self.std))
        return (pixels.astype(np.float32) / 255 - mean) / std


def preprocess(
    image: ImageLike | Iterable[ImageLike],
    *,
    image_size: int | tuple[int, int] = 224,
    crop_fraction: float = 0.875,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    exif_rotation: bool = True,
) -> np.ndarray:
    """Makes images ready for a model: `model(convit_jax.preprocess("cat.jpg"))`.

    The shorter side is scaled to 256 pixels by Pillow's antialiased bicubic filter, the centre 224
    are cut out and normalised: what the released weights were evaluated with.

    Args:
        image: a path, the bytes of a file, a PIL image of any mode, or a uint8 array
            [H, W, channels] or [H, W]; or several of such, in a list, an array with one more
            dimension or anything else to go through.
        image_size: side, or (height, width), that the model sees.
        crop_fraction: share of the scaled image's side that is kept, above 0, up to 1.
        mean, std: for each channel, in units of full scale; their number is that of the channels.
        exif_rotation: whether to turn photographs upright as their metadata say.

    Returns:
        float32 [B, height, width, channels], with B = 1 for a single image.

    Raises:
        InputError: no image there, or an array of another type or shape.
        MachineError: the machine could not read it.
    """
    preprocessing = _checked(image_size, crop_fraction, mean, std)
    crops = [
        preprocessing.crop(one, name, rotate=exif_rotation) for one, name in _one_by_one(image)
    ]
    if not crops:
        raise InputError("no images: expected at least one")
    return preprocessing.normalise(np.stack(crops))


def _checked(
    image_size: int | tuple[int, int],
    crop_fraction: float,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Preprocessing:
    with boundary("image_size, crop_fraction, mean or std"):
        size = (image_size,) * 2 if isinstance(image_size, numbers.Integral) else tuple(image_size)
        mean, std = (tuple(float(value) for value in values) for values in (mean, std))
        check_channels(len(mean), "number of means")
        for holds, expected in (
            (len(size) == 2, f"image_size={image_size}: expected a side or (height, width)"),
            (min(size) >= 1, f"image_size={image_size}: expected at least 1 pixel"),
            (0 < crop_fraction <= 1, f"crop_fraction={crop_fraction}: expected above 0, up to 1"),
            (len(mean) == len(std), f"{len(mean)} means and {len(std)} std: expected as many"),
            (np.all(np.isfinite(mean)), f"mean={mean}: expected finite numbers"),
            (np.all(np.isfinite(std)) and min(std) > 0, f"std={std}: expected numbers above 0"),
        ):
            if not holds:
                raise InputError(expected)
        return Preprocessing((int(size[0]), int(size[1])), crop_fraction, mean, std)


def _one_by_one(images: Any) -> Iterator[tuple[ImageLike, str | None]]:
    """Each image with what to call it."""
    if isinstance(images, _ONE_IMAGE) or (hasattr(images, "__array__") and np.ndim(images) != 4):
        yield images, None
        return
    if not isinstance(images, Iterable):
        raise InputError(f"images of type {type(images).__name__}: expected {_EXPECTED}")
    for number, one in enumerate(images):
        yield one, str(one) if isinstance(one, str | os.PathLike) else f"image {number}"


_EXPECTED = (
    "a path, a file's bytes, a PIL image or a uint8 array [height, width, channels], or a list of "
    "such"
)


def _pixels(image: ImageLike, channels: int, rotate: bool) -> np.ndarray:
    """Uint8 [H, W, channels]."""
    if isinstance(image, str | os.PathLike):
        return _read(user_path(image), channels, rotate)
    if isinstance(image, bytes | bytearray | memoryview):
        return decode(bytes(image), channels, rotate=rotate)
    if isinstance(image, Image.Image):
        return _pixels_of_pil(image, channels, rotate)
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


def _pixels_of_pil(image: Image.Image, channels: int, rotate: bool) -> np.ndarray:
    image.load()
    pixels = pixels_of(image, channels)
    if not rotate:
        return pixels
    # As it is in memory, where it may have been changed: not as in the file.
    return turn(pixels, orientation_in_pillow(image))


def _read(path: epath.Path, channels: int, rotate: bool) -> np.ndarray:
    try:
        encoded = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"no image at {path}: the file does not exist") from error
    return decode(encoded, channels, rotate=rotate)
