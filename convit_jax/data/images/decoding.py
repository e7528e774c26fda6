"""Encoded images of any usual kind → uint8 pixels."""

import functools
import io
import logging
import warnings

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from convit_jax.data.images.image_metadata import (
    PNG_HEADER_END,
    UPRIGHT,
    ImageFile,
    orientation_of,
    png_pixels_alone,
    read_jpeg,
    read_png,
    turn,
)
from convit_jax.errors import InputError, first_line, machine_fault

# One image is decoded by one thread: the parallelism is between images.
cv2.setNumThreads(0)
# What is wrong with an image is said once, where it is counted, and not by the libraries too.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)

# The largest image that is decoded, in pixels: where Pillow, too, refuses by itself.
MAX_PIXELS = 178_956_970

# What Pillow calls the kinds of files that are read: pixels, which it decodes by itself. It knows
# others that it hands to another program (EPS, WMF), that hold files of yet other kinds (IPTC), or
# that it only recognises.
FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "ICO", "DDS"),
    *("QOI", "PSD", "PCX", "DCX", "SGI", "SUN", "DIB", "CUR", "ICNS", "IM", "MSP", "PCD", "PIXAR"),
    *("FLI", "GBR", "XBM", "XPM", "BLP", "FTEX"),
)

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_PNG_COLOURS = {0: cv2.IMREAD_GRAYSCALE, 2: cv2.IMREAD_COLOR_RGB}  # by the header's colour type
# Pillow converts these in one way only.
_ONLY_TO = {"La": "LA", "RGBa": "RGBA", "LAB": "RGB"}
_ORIENTATION, _SAMPLES_PER_PIXEL = 0x0112, 0x0115


class BrokenImageError(ValueError):
    """An image that cannot be decoded."""


def check_channels(channels: int, name: str) -> None:
    """Raises InputError where images cannot be read with so many channels, as `name` asks."""
    if channels not in _MODES:
        raise InputError(
            f"{name}={channels}: images are read with 1 channel (grey), 2 (grey, alpha), 3 (red, "
            "green, blue) or 4 (and alpha)"
        )


def decode(encoded: bytes, channels: int, rotate: bool = True) -> np.ndarray:
    """The pixels of a JPEG, PNG, WebP, BMP or whatever else Pillow reads, of several the first.

    Plain JPEG and PNG files take a fast way, the rest goes through Pillow. The pixels are those
    that Pillow gives, either way. 16 bits a channel become 8, transparency is dropped where it is
    not asked for and opaque where it is not there.

    Args:
        encoded: the file's bytes.
        channels: 1 for grey, 2 for grey and alpha, 3 for RGB, 4 for RGBA.
        rotate: whether to turn the image upright as its metadata (EXIF, XMP) say.

    Returns:
        uint8 [height, width, channels].

    Raises:
        BrokenImageError: the bytes are no image, or only part of one, or one of too many pixels.
        MemoryError: there is none left.
    """
    try:
        return _decode(encoded, channels, rotate)
    except BrokenImageError:
        raise
    except UnidentifiedImageError as error:
        raise BrokenImageError("no image of a known kind") from error
    except Exception as error:
        if machine_fault(error) and not (isinstance(error, MemoryError) and _memory_is_left()):
            raise
        raise BrokenImageError(first_line(error)) from error


def pixels_of(image: Image.Image, channels: int) -> np.ndarray:
    """The pixels of an image of any mode, not turned: uint8 [height, width, channels].

    Whole numbers of more than 8 bits are taken to be of 16, floating-point ones to be in
    [0, 255], as Pillow has it.

    Raises:
        BrokenImageError: it has too many pixels.
        Exception: whatever Pillow raises.
    """
    check_pixels(image.size)
    if image.mode == "RGBX" and channels == 4:
        return np.array(image)  # four bands, of which the last is no transparency
    if channels in (1, 3) and "transparency" in image.info:
        image = image.copy()
        del image.info["transparency"]
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_as_eight_bits(np.asarray(image)))
    for mode in (_ONLY_TO.get(image.mode), _MODES[channels]):
        if mode and mode != image.mode:
            image = image.convert(mode)
    pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], channels)


def check_pixels(size: tuple[int, int]) -> None:
    """Raises BrokenImageError for an image (width, height) that is larger than what is decoded."""
    if size[0] * size[1] > MAX_PIXELS:
        raise BrokenImageError(
            f"{size[0]} x {size[1]} are {size[0] * size[1]:,} pixels: at most {MAX_PIXELS:,} are "
            "decoded"
        )


def _decode(encoded: bytes, channels: int, rotate: bool) -> np.ndarray:
    if encoded.startswith(_JPEG):
        file, decode_fast = read_jpeg(encoded), _decode_jpeg
    elif encoded.startswith(_PNG):
        file, decode_fast = read_png(encoded, transparency=channels in (2, 4)), _decode_png
    else:
        pixels, orientation = _decode_any(encoded, channels)
        return turn(pixels, orientation) if rotate else pixels
    pixels = decode_fast(file, channels)
    if pixels is None:
        pixels, _ = _decode_any(file.bare, channels)
    return turn(pixels, file.orientation) if rotate and (file.exif or file.xmp) else pixels


def _decode_jpeg(file: ImageFile, channels: int) -> np.ndarray | None:
    """As `decode`, for the usual JPEG; None for anything else."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(file.encoded)
    except ValueError:
        return None
    check_pixels((width, height))
    if not ((colours == "Gray" and channels in (1, 3)) or (colours == "YCbCr" and channels == 3)):
        return None
    try:
        return simplejpeg.decode_jpeg(file.encoded, colorspace="RGB" if channels == 3 else "GRAY")
    except ValueError:
        return None  # Pillow forgives stray bytes


def _decode_png(file: ImageFile, channels: int) -> np.ndarray | None:
    """As `decode`, for the usual PNG; None for anything else."""
    header = file.encoded[:PNG_HEADER_END]
    if len(header) < PNG_HEADER_END:
        return None
    check_pixels((int.from_bytes(header[16:20]), int.from_bytes(header[20:24])))
    flag = _PNG_COLOURS.get(header[25]) if header[24] == 8 else None
    if flag is None or channels != (1 if flag == cv2.IMREAD_GRAYSCALE else 3):
        return None
    alone = png_pixels_alone(file)
    if alone is None:
        return None
    pixels = cv2.imdecode(np.frombuffer(alone, np.uint8), flag)
    return None if pixels is None else pixels.reshape(*pixels.shape[:2], channels)


def _decode_any(encoded: bytes, channels: int) -> tuple[np.ndarray, int]:
    """Pixels as they are stored, and the orientation."""
    with Image.open(io.BytesIO(encoded), formats=_formats()) as image:
        check_pixels(image.size)
        if image.format == "TIFF":
            return _decode_tiff(image, channels)
        image.load()
        orientation = orientation_of(image.info.get("exif", b""), image.info.get("xmp", b""))
        return pixels_of(image, channels), orientation


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _decode_tiff(image: Image.Image, channels: int) -> tuple[np.ndarray, int]:
    """As `_decode_any`: Pillow turns these by itself as it loads them, which is undone."""
    bands = image.tag_v2.get(_SAMPLES_PER_PIXEL, 1)
    if channels == 4 and bands > len(image.getbands()):
        raise BrokenImageError(
            f"of its {bands} bands {len(image.getbands())} can be read: a fourth must be stored as "
            "alpha (ExtraSamples 2)"
        )
    orientation = orientation_in_pillow(image)
    image.load()
    pixels = pixels_of(image, channels)
    if orientation_in_pillow(image) != orientation:
        # All are their own opposites but the turns by a quarter.
        pixels = turn(pixels, {6: 8, 8: 6}.get(orientation, orientation))
    return pixels, orientation


def orientation_in_pillow(image: Image.Image) -> int:
    """An image's orientation as Pillow has it now, which need not be the file's; 1 is upright."""
    try:
        told = image.getexif().get(_ORIENTATION, UPRIGHT)
    except Exception:
        return UPRIGHT  # something else in the metadata is malformed, which does not matter here
    return int(told) if told in range(1, 9) else UPRIGHT


def _as_eight_bits(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype.kind == "f":
        return np.nan_to_num(pixels, posinf=255.0).clip(0, 255).astype(np.uint8)
    return np.round(pixels.astype(np.float32) / 257).clip(0, 255).astype(np.uint8)


def _memory_is_left() -> bool:
    """Whether a decoder that found none asked for what no sound image takes."""
    try:
        np.empty(4 * MAX_PIXELS, np.uint8)
    except MemoryError:
        return False
    return True
