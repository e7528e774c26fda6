"""Encoded images of any usual kind → uint8 pixels."""

import io

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

# One image is decoded by one thread: the parallelism is between images.
cv2.setNumThreads(0)

_MODES = {1: "L", 3: "RGB"}
# What `decode` can make of an image: so many channels.
CHANNELS = tuple(_MODES)
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_EXIF_WITHIN = 4096
_PNG_COLOURS = {0: cv2.IMREAD_GRAYSCALE, 2: cv2.IMREAD_COLOR_RGB}  # by the header's colour type


class BrokenImageError(ValueError):
    """An image that cannot be decoded."""


def decode(encoded: bytes, channels: int) -> np.ndarray:
    """The pixels of a JPEG, PNG, WebP, BMP or whatever else Pillow reads.

    Plain JPEG and PNG files take a fast way; palettes, CMYK, 16 bits a channel, transparency
    (which is dropped) and EXIF rotation (which is honoured) go through Pillow. The pixels are
    those that Pillow gives, either way.

    Args:
        encoded: the file's bytes.
        channels: 1 for grey, 3 for RGB.

    Returns:
        uint8 [height, width, channels].

    Raises:
        BrokenImageError: the bytes are no image, or only part of one.
    """
    try:
        pixels = _decode_fast(encoded, channels)
        return _decode_any(encoded, channels) if pixels is None else pixels
    except UnidentifiedImageError as error:
        raise BrokenImageError("no image of a known kind") from error
    except (OSError, ValueError, SyntaxError, cv2.error, Image.DecompressionBombError) as error:
        raise BrokenImageError(" ".join(str(error).split()) or type(error).__name__) from error


def _decode_fast(encoded: bytes, channels: int) -> np.ndarray | None:
    """As `decode`, for the usual JPEG and PNG; None for anything else."""
    # EXIF, and the rotation in it, is the first segment of a JPEG, or the second after JFIF's.
    if encoded.startswith(_JPEG) and b"Exif" not in encoded[:_EXIF_WITHIN]:
        try:
            colours = simplejpeg.decode_jpeg_header(encoded)[2]
            wanted = ("YCbCr", "Gray") if channels == 3 else ("Gray",)
            if colours not in wanted:
                return None
            return simplejpeg.decode_jpeg(encoded, colorspace="RGB" if channels == 3 else "GRAY")
        except ValueError:
            return None  # Pillow forgives stray bytes
    if encoded.startswith(_PNG) and encoded[24:25] == b"\x08" and b"eXIf" not in encoded:
        flag = _PNG_COLOURS.get(encoded[25])
        if flag is not None and channels == (1 if flag == cv2.IMREAD_GRAYSCALE else 3):
            pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), flag)
            return None if pixels is None else pixels.reshape(*pixels.shape[:2], channels)
    return None


def _decode_any(encoded: bytes, channels: int) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):
            # 16 bits a pixel: Pillow's own conversion would clip them to 255.
            grey = np.asarray(image).astype(np.float32) / 257.0
            image = Image.fromarray(np.clip(np.round(grey), 0, 255).astype(np.uint8))
        pixels = np.asarray(image.convert(_MODES[channels]))
    return pixels.reshape(*pixels.shape[:2], channels)
