"""Host transforms of decoded pixels to the uint8 image for the device."""

import dataclasses
import functools
import math

import cv2
import numpy as np

from convit_jax.data.images.decoding import check_channels
from convit_jax.data.images.randaugment import RandAugment, parse_randaugment
from convit_jax.data.images.resizing import (
    random_resized_crop,
    resize_and_centre_crop,
    resize_and_random_crop,
    resize_exactly,
    resize_fast,
)
from convit_jax.data.images.three_augment import colour_jitter, three_augment
from convit_jax.errors import InputError

CROPS = ("random_resized", "simple", "pad", "none")


@dataclasses.dataclass(frozen=True)
class EvalTransform:
    """Transform of an image for evaluation: resize and centre crop.

    Attributes:
        image_size: (height, width) in pixels.
        channels: 1 to 4.
        crop_fraction: the crop's side as a share of the scaled image's.
    """

    image_size: tuple[int, int]
    channels: int
    crop_fraction: float = 1.0

    def __post_init__(self) -> None:
        check_channels(self.channels, "config.model.in_channels")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """uint8 [H, W, channels] → [height, width, channels]."""
        return resize_and_centre_crop(image, self.image_size, self.crop_fraction)


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """Transform of an image for training: crop, flip, affine map, RandAugment or 3-Augment, jitter.

    Attributes:
        image_size: (height, width) in pixels.
        channels: 1 to 4.
        crop: `random_resized` (scale a random part), `simple` (scale the shorter side, pad by
            reflection, crop at random), `pad` (pad, then crop at random: for small images) or
            `none` (scale the whole image).
        crop_scale: range of a random part's share of the area.
        crop_ratio: range of a random part's width over its height.
        crop_padding: width of the border of `simple` and of the black one of `pad`, in pixels.
        flip: probability of a horizontal flip.
        randaugment: policy in timm's notation, or "" for none; requires 3 channels.
        three_augment: apply one of greyscale, solarization and blur; requires 3 channels.
        colour_jitter: largest relative change of brightness, contrast and saturation; requires 3
            channels.
        rotate, shear: largest angle in either direction, in degrees.
        zoom: largest change of scale in either direction, as a share.
        translate: largest shift in either direction, as a share of the side.
    """

    image_size: tuple[int, int]
    channels: int
    crop: str = "none"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    crop_padding: int = 4
    flip: float = 0.0
    randaugment: str = ""
    three_augment: bool = False
    colour_jitter: float = 0.0
    rotate: float = 0.0
    zoom: float = 0.0
    shear: float = 0.0
    translate: float = 0.0

    def __post_init__(self) -> None:
        check_channels(self.channels, "config.model.in_channels")
        for name, off in (("randaugment", ""), ("three_augment", False), ("colour_jitter", 0.0)):
            value = getattr(self, name)
            if value and self.channels != 3:
                raise InputError(
                    f"config.augment.{name}={value!r} is for colour images: expected {off!r} where "
                    f"config.model.in_channels={self.channels}"
                )

    @functools.cached_property
    def _policy(self) -> RandAugment | None:
        return parse_randaugment(self.randaugment) if self.randaugment else None

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """uint8 [H, W, channels] and the view's random generator → [height, width, channels]."""
        image = self._crop(image, rng)
        if self.flip and rng.random() < self.flip:
            image = cv2.flip(image, 1).reshape(image.shape)
        if self.rotate or self.zoom or self.shear or self.translate:
            image = self._affine(image, rng)
        image = self._policy(image, rng) if self._policy else image
        image = three_augment(image, rng) if self.three_augment else image
        return colour_jitter(image, self.colour_jitter, rng) if self.colour_jitter else image

    def _crop(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.crop == "random_resized":
            box = random_resized_crop(image.shape[:2], self.crop_scale, self.crop_ratio, rng)
            top, left, height, width = box
            return resize_fast(image[top : top + height, left : left + width], self.image_size)
        if self.crop == "simple":
            return resize_and_random_crop(image, self.image_size, self.crop_padding, rng)
        image = resize_exactly(image, self.image_size)
        if self.crop == "pad" and self.crop_padding:
            padding = self.crop_padding
            image = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
            top, left = rng.integers(2 * padding + 1, size=2)
            height, width = self.image_size
            image = image[top : top + height, left : left + width]
        return image

    def _affine(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Apply a random affine map about the centre; pixels from outside the image are black."""
        angle, zoom, shear, shift_x, shift_y = rng.uniform(-1.0, 1.0, size=5)
        angle, shear = math.radians(angle * self.rotate), math.radians(shear * self.shear)
        scale = 1.0 / (1.0 + zoom * self.zoom)
        cos, sin, slant = math.cos(angle) * scale, math.sin(angle) * scale, math.tan(shear)
        # The source position of each output pixel is (a x + b y + c, d x + e y + f).
        a, b, d, e = cos, cos * slant + sin, -sin, cos - sin * slant
        height, width = image.shape[:2]
        x, y = (width - 1) / 2, (height - 1) / 2
        c = x - a * x - b * y + shift_x * self.translate * width
        f = y - d * x - e * y + shift_y * self.translate * height
        matrix, linear = np.array([[a, b, c], [d, e, f]]), cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        warped = cv2.warpAffine(image, matrix, (width, height), flags=linear)
        return warped.reshape(image.shape)
