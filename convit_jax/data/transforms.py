"""From encoded bytes to the uint8 image that goes to the device: pure functions of (bytes, key)."""

import dataclasses
import io
import math

import numpy as np
from PIL import Image

_MODES = {1: "L", 3: "RGB"}


def decode(encoded: bytes, channels: int) -> Image.Image:
    """A PNG, JPEG, … as a grey (1 channel) or RGB (3 channels) picture."""
    return Image.open(io.BytesIO(encoded)).convert(_MODES[channels])


def to_array(image: Image.Image) -> np.ndarray:
    """uint8 [height, width, channels]."""
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


def fit(image: Image.Image, image_size: tuple[int, int]) -> Image.Image:
    """The picture at (height, width), by antialiased bicubic filtering where it has another."""
    size = (image_size[1], image_size[0])
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


@dataclasses.dataclass(frozen=True)
class EvalTransform:
    """What an evaluated image goes through.

    Attributes:
        image_size: (height, width) in pixels.
        channels: 1 or 3.
    """

    image_size: tuple[int, int]
    channels: int

    def __call__(self, encoded: bytes) -> np.ndarray:
        """Encoded bytes → uint8 [height, width, channels]."""
        return to_array(fit(decode(encoded, self.channels), self.image_size))


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """What a training image goes through: a random affine map about its centre.

    Attributes:
        image_size: (height, width) in pixels.
        channels: 1 or 3.
        rotate, shear: largest angle either way, in degrees.
        zoom: largest change of scale either way, as a share.
        translate: largest shift either way and axis, as a share of the side.
    """

    image_size: tuple[int, int]
    channels: int
    rotate: float = 0.0
    zoom: float = 0.0
    shear: float = 0.0
    translate: float = 0.0

    def __call__(self, encoded: bytes, rng: np.random.Generator) -> np.ndarray:
        """Encoded bytes and the example's random numbers → uint8 [height, width, channels]."""
        image = fit(decode(encoded, self.channels), self.image_size)
        if self.rotate or self.zoom or self.shear or self.translate:
            image = self._affine(image, rng)
        return to_array(image)

    def _affine(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        angle, zoom, shear, shift_x, shift_y = rng.uniform(-1.0, 1.0, size=5)
        angle, shear = math.radians(angle * self.rotate), math.radians(shear * self.shear)
        scale = 1.0 / (1.0 + zoom * self.zoom)
        cos, sin, slant = math.cos(angle) * scale, math.sin(angle) * scale, math.tan(shear)
        # Pillow wants the source position of each output pixel, (a x + b y + c, d x + e y + f).
        a, b, d, e = cos, cos * slant + sin, -sin, cos - sin * slant
        width, height = image.size
        x, y = (width - 1) / 2, (height - 1) / 2
        c = x - a * x - b * y + shift_x * self.translate * width
        f = y - d * x - e * y + shift_y * self.translate * height
        # Pillow adds half a pixel before the map and takes half off after it.
        c, f = c + 0.5 - (a + b) / 2, f + 0.5 - (d + e) / 2
        return image.transform(
            image.size, Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR
        )
