"""From an image, wherever it comes from, to what a model takes: the road of evaluation."""

import dataclasses
import io
import pathlib
from collections.abc import Sequence

import numpy as np
from etils import epath
from PIL import Image

from convit_jax.data.decoding import BrokenImageError, decode
from convit_jax.data.resizing import resize_and_centre_crop
from convit_jax.errors import InputError
from convit_jax.paths import user_path

# Image statistics of ImageNet (red, green, blue), in units of full scale.
IMAGENET_EXAMPLES = 1_281_167  # for training
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

ImageLike = str | pathlib.Path | bytes | np.ndarray | Image.Image


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

    def crop(self, image: ImageLike) -> np.ndarray:
        """Scales an image and cuts out its centre: → uint8 [height, width, channels].

        Raises:
            InputError: an array that is no image, or a file that is not there.
            BrokenImageError: a file that is no image.
        """
        pixels = _pixels(image, len(self.mean))
        return resize_and_centre_crop(pixels, self.image_size, self.crop_fraction)

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """Uint8 [..., channels] → float32, (pixels / 255 - mean) / std."""
        mean, std = (np.asarray(values, np.float32) for values in (self.mean, self.std))
        return (pixels.astype(np.float32) / 255 - mean) / std


def preprocess(
    image: ImageLike | Sequence[ImageLike],
    *,
    image_size: int | tuple[int, int] = 224,
    crop_fraction: float = 0.875,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> np.ndarray:
    """Makes images ready for a model: `model(convit_jax.preprocess("cat.jpg"))`.

    The shorter side is scaled to 256 pixels by Pillow's antialiased bicubic filter, the centre 224
    are cut out and normalised: what the released weights were evaluated with.

    Args:
        image: a path, the bytes of a file, a PIL image or a uint8 array [H, W, channels] or
            [H, W]; or a sequence of such.
        image_size: side, or (height, width), that the model sees.
        crop_fraction: share of the scaled image's side that is kept.
        mean, std: for each channel, in units of full scale; their number is that of the channels.

    Returns:
        float32 [B, height, width, channels], with B = 1 for a single image.

    Raises:
        InputError: no image there, or an array of another type or shape.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    preprocessing = Preprocessing(size, crop_fraction, mean, std)
    images = image if isinstance(image, list | tuple) else [image]
    try:
        return preprocessing.normalise(np.stack([preprocessing.crop(one) for one in images]))
    except BrokenImageError as error:
        raise InputError(str(error)) from error


def _pixels(image: ImageLike, channels: int) -> np.ndarray:
    """Uint8 [H, W, channels]."""
    if isinstance(image, str | pathlib.Path):
        return _read(user_path(image), channels)
    if isinstance(image, bytes):
        return decode(image, channels)
    if isinstance(image, Image.Image):
        # By way of a file, so that a rotation in it, a palette or 16 bits are dealt with alike.
        encoded = io.BytesIO()
        image.save(encoded, "PNG", compress_level=0, exif=image.getexif())
        return decode(encoded.getvalue(), channels)
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = np.repeat(pixels, channels, axis=2)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != channels:
        raise InputError(
            f"an image of {pixels.dtype} {pixels.shape}: expected uint8 [height, width, {channels}]"
        )
    return pixels


def _read(path: epath.Path, channels: int) -> np.ndarray:
    try:
        return decode(path.read_bytes(), channels)
    except FileNotFoundError as error:
        raise InputError(f"no image at {path}: the file does not exist") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except BrokenImageError as error:
        raise BrokenImageError(f"{path}: {error}") from error
