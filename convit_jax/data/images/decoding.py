"""Encoded images of all common formats → uint8 pixels."""

import functools
import io
import logging
import warnings

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from convit_jax.data.images.image_metadata import (
    PNG_HEADER_END,
    UPRIGHT,
    ImageFile,
    apply_orientation,
    parse_jpeg,
    parse_orientation,
    parse_png,
    png_critical_chunks,
)
from convit_jax.errors import InputError, first_line, machine_fault

# One image is decoded by one thread: images are processed in parallel.
cv2.setNumThreads(0)
# Problems of an image are logged once, by data.health, and not by the libraries as well.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)

# The largest image that is decoded, in pixels; Pillow refuses larger ones, too.
MAX_PIXELS = 178_956_970

# Pillow's names of the formats that are read. Left out are those that Pillow passes to another
# program (EPS, WMF), that contain files of other formats (IPTC), or that it only identifies.
FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "ICO", "DDS"),
    *("QOI", "PSD", "PCX", "DCX", "SGI", "SUN", "DIB", "CUR", "ICNS", "IM", "MSP", "PCD", "PIXAR"),
    *("FLI", "GBR", "XBM", "XPM", "BLP", "FTEX"),
)

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_PNG_COLOURS = {0: cv2.IMREAD_GRAYSCALE, 2: cv2.IMREAD_COLOR_RGB}  # by the colour type
# Modes that Pillow can convert to a single other mode only.
_INTERMEDIATE_MODES = {"La": "LA", "RGBa": "RGBA", "LAB": "RGB"}
_ORIENTATION_TAG, _SAMPLES_PER_PIXEL_TAG = 0x0112, 0x0115


class BrokenImageError(ValueError):
    """An image that cannot be decoded."""


def check_channels(channels: int, name: str) -> None:
    """Raise InputError unless images can be read with this number of channels, given by `name`."""
    if channels not in _MODES:
        raise InputError(
            f"{name}={channels}: images are read with 1 channel (grey), 2 (grey, alpha), 3 (red, "
            "green, blue) or 4 (and alpha)"
        )


def decode(encoded: bytes, channels: int, rotate: bool = True) -> np.ndarray:
    """Decode a JPEG, PNG, WebP, BMP or another of `FORMATS`; of several images, the first.

    Common JPEG and PNG files are decoded by faster libraries than Pillow, with the same pixels as
    Pillow's. 16 bits per channel are reduced to 8. An alpha channel is dropped if it is not
    requested, and opaque if the file has none.

    Args:
        encoded: the file's bytes.
        channels: 1 for grey, 2 for grey and alpha, 3 for RGB, 4 for RGBA.
        rotate: whether to rotate the image by the orientation in its metadata (EXIF, XMP).

    Returns:
        uint8 [height, width, channels].

    Raises:
        BrokenImageError: the bytes are not an image, are incomplete, or have too many pixels.
        MemoryError: the machine has no memory left.
    """
    try:
        return _decode(encoded, channels, rotate)
    except BrokenImageError:
        raise
    except UnidentifiedImageError as error:
        raise BrokenImageError("not an image of a known format") from error
    except Exception as error:
        if machine_fault(error) and not (isinstance(error, MemoryError) and _is_memory_available()):
            raise
        raise BrokenImageError(first_line(error)) from error


def pixels_from_pil(image: Image.Image, channels: int) -> np.ndarray:
    """Return the pixels of an image of any mode, not rotated: uint8 [height, width, channels].

    Integers of more than 8 bits are assumed to have 16, floating-point values to be in [0, 255],
    as in Pillow.

    Raises:
        BrokenImageError: it has too many pixels.
        Exception: whatever Pillow raises.
    """
    check_pixels(image.size)
    if image.mode == "RGBX" and channels == 4:
        return np.array(image)  # four bands, of which the last is not an alpha channel
    if channels in (1, 3) and "transparency" in image.info:
        image = image.copy()
        del image.info["transparency"]
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_to_eight_bits(np.asarray(image)))
    for mode in (_INTERMEDIATE_MODES.get(image.mode), _MODES[channels]):
        if mode and mode != image.mode:
            image = image.convert(mode)
    pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], channels)


def check_pixels(size: tuple[int, int]) -> None:
    """Raise BrokenImageError if an image of `size` (width, height) is larger than `MAX_PIXELS`."""
    if size[0] * size[1] > MAX_PIXELS:
        raise BrokenImageError(
            f"{size[0]} x {size[1]} are {size[0] * size[1]:,} pixels: at most {MAX_PIXELS:,} are "
            "decoded"
        )


def _decode(encoded: bytes, channels: int, rotate: bool) -> np.ndarray:
    if encoded.startswith(_JPEG):
        file = parse_jpeg(encoded)
        pixels = _decode_jpeg(file, channels)
    elif encoded.startswith(_PNG):
        file = parse_png(encoded, transparency=channels in (2, 4))
        pixels = _decode_png(file, channels)
    else:
        stored, orientation = _decode_with_pil(encoded, channels)
        return apply_orientation(stored, orientation) if rotate else stored
    if pixels is None:
        pixels, _ = _decode_with_pil(file.without_metadata, channels)
    return apply_orientation(pixels, file.orientation) if rotate else pixels


def _decode_jpeg(file: ImageFile, channels: int) -> np.ndarray | None:
    """Decode a common JPEG, as `decode` does; return None for any other."""
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
        return None  # Pillow tolerates stray bytes


def _decode_png(file: ImageFile, channels: int) -> np.ndarray | None:
    """Decode a common PNG, as `decode` does; return None for any other."""
    header = file.encoded[:PNG_HEADER_END]
    if len(header) < PNG_HEADER_END:
        return None
    check_pixels((int.from_bytes(header[16:20]), int.from_bytes(header[20:24])))
    flag = _PNG_COLOURS.get(header[25]) if header[24] == 8 else None
    if flag is None or channels != (1 if flag == cv2.IMREAD_GRAYSCALE else 3):
        return None
    critical = png_critical_chunks(file)
    if critical is None:
        return None
    pixels = cv2.imdecode(np.frombuffer(critical, np.uint8), flag)
    return None if pixels is None else pixels.reshape(*pixels.shape[:2], channels)


def _decode_with_pil(encoded: bytes, channels: int) -> tuple[np.ndarray, int]:
    """Return the pixels as they are stored, and the orientation."""
    with Image.open(io.BytesIO(encoded), formats=_formats()) as image:
        check_pixels(image.size)
        if isinstance(image, TiffImageFile):
            return _decode_tiff(image, channels)
        image.load()
        orientation = parse_orientation(image.info.get("exif", b""), image.info.get("xmp", b""))
        return pixels_from_pil(image, channels), orientation


@functools.cache
def _formats() -> tuple[str, ...]:
    """Return those of `FORMATS` that this build of Pillow supports."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _decode_tiff(image: TiffImageFile, channels: int) -> tuple[np.ndarray, int]:
    """As `_decode_with_pil`, undoing the rotation that Pillow applies to a TIFF as it loads it."""
    num_bands = image.tag_v2.get(_SAMPLES_PER_PIXEL_TAG, 1)
    if channels == 4 and num_bands > len(image.getbands()):
        raise BrokenImageError(
            f"only {len(image.getbands())} of its {num_bands} bands can be read: a fourth must be "
            "stored as alpha (ExtraSamples 2)"
        )
    orientation = pil_orientation(image)
    image.load()
    pixels = pixels_from_pil(image, channels)
    if pil_orientation(image) != orientation:
        # Every orientation but the quarter turns is its own inverse.
        pixels = apply_orientation(pixels, {6: 8, 8: 6}.get(orientation, orientation))
    return pixels, orientation


def pil_orientation(image: Image.Image) -> int:
    """Return Pillow's current orientation of an image, which may differ from the file's."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, UPRIGHT)
    except Exception:
        return UPRIGHT  # another part of the metadata is malformed, which does not matter here
    return int(orientation) if orientation in range(1, 9) else UPRIGHT


def _to_eight_bits(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype.kind == "f":
        return np.nan_to_num(pixels, posinf=255.0).clip(0, 255).astype(np.uint8)
    return np.round(pixels.astype(np.float32) / 257).clip(0, 255).astype(np.uint8)


def _is_memory_available() -> bool:
    """Return whether an image of any allowed size fits into memory.

    Then a MemoryError means that the decoder requested more than a valid image needs.
    """
    try:
        np.empty(4 * MAX_PIXELS, np.uint8)
    except MemoryError:
        return False
    return True
