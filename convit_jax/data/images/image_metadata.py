"""The metadata of JPEGs and PNGs: the orientation is read, the rest is removed before decoding.

Of everything that cameras and programs write into images (EXIF, XMP, colour profiles, texts), only
the orientation matters here. It is parsed here, so that errors elsewhere in the metadata have no
effect, and the decoders get the file without metadata: they neither fail on malformed metadata nor
print warnings about it.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np

UPRIGHT = 1
# Orientation → cv2.flip's code: mirror horizontally (1), vertically (0), or both (-1).
_FLIPS = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}

_ORIENTATION_TAG = 0x0112
# TIFF's type numbers → struct formats, of all types that Pillow accepts for an orientation.
_NUMBER_FORMATS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d"}
_RATIONAL_FORMATS = {5: "II", 10: "ii"}
_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')

# Number of bytes up to which a PNG's text is decompressed to look for EXIF in it.
_MAX_TEXT_LENGTH = 1 << 20


class ImageFile(NamedTuple):
    """A JPEG or PNG, split into image and metadata.

    Attributes:
        encoded: the file's bytes.
        spans: (begin, end) of each part that is needed for decoding, in order.
        exif: the EXIF data, with or without their heading; may be empty.
        xmp: the XMP data; may be empty.
    """

    encoded: bytes
    spans: list[tuple[int, int]]
    exif: bytes = b""
    xmp: bytes = b""

    @property
    def orientation(self) -> int:
        """EXIF's number, 1 to 8; 1 (upright) if the metadata have no valid orientation."""
        if not (self.exif or self.xmp):
            return UPRIGHT
        return parse_orientation(self.exif, self.xmp)

    @property
    def without_metadata(self) -> bytes:
        """The file's bytes without the metadata."""
        return b"".join(self.encoded[begin:end] for begin, end in self.spans)


def parse_orientation(exif: bytes, xmp: bytes) -> int:
    """Return EXIF's orientation if it has one, else XMP's; 1 if neither is well-formed."""
    orientation = _exif_orientation(exif)
    if orientation is None:
        match = _XMP.search(xmp)
        orientation = int(match[1]) if match else UPRIGHT
    return orientation if 1 <= orientation <= 8 else UPRIGHT


def apply_orientation(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Make stored pixels [H, W, C] upright: [H, W, C] or [W, H, C]."""
    if orientation == UPRIGHT:
        return pixels
    channels = pixels.shape[2]
    if orientation >= 5:
        pixels = cv2.transpose(pixels)
    # After that, every orientation is a mirror image at most.
    if orientation in _FLIPS:
        pixels = cv2.flip(pixels, _FLIPS[orientation])
    return pixels.reshape(*pixels.shape[:2], channels)


def _exif_orientation(exif: bytes) -> int | None:
    """Return the orientation in a TIFF header's first directory, or None if it cannot be read."""
    tiff = re.sub(rb"^(?:Exif\0\0){1,2}", b"", exif)
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or tiff[2:4] not in (b"*\0", b"\0*"):
        return None
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (num_entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(num_entries):
            offset = directory + 2 + 12 * entry
            tag, kind, count = struct.unpack_from(f"{order}HHI", tiff, offset)
            if tag == _ORIENTATION_TAG and count:
                return _orientation_value(tiff, order, offset + 8, kind, count)
    except struct.error:
        pass  # the data end too early
    return None


def _orientation_value(tiff: bytes, order: str, offset: int, kind: int, count: int) -> int:
    """Return the first value of an entry, or `UPRIGHT` if it is not an orientation."""
    value_format = order + (_NUMBER_FORMATS.get(kind) or _RATIONAL_FORMATS.get(kind) or "")
    if count * struct.calcsize(value_format) > 4:
        (offset,) = struct.unpack_from(f"{order}I", tiff, offset)
    values = struct.unpack_from(value_format, tiff, offset)
    if kind in _RATIONAL_FORMATS:
        value = values[0] / values[1] if values[1] else UPRIGHT
    else:
        value = values[0] if values else UPRIGHT
    return int(value) if value in range(1, 9) else UPRIGHT


# A JPEG consists of segments: a marker (two bytes, of which the first is FF) and, for most markers,
# a length, which includes itself.
_START_OF_SCAN, _END_OF_IMAGE, _APP1 = 0xDA, 0xD9, 0xE1
_WITHOUT_LENGTH = {0x00, 0x01, *range(0xD0, 0xD9)}
# APP0 (JFIF) and APP14 (Adobe) define the pixels' colour space; the other application segments and
# comments are metadata.
_JPEG_METADATA = {*range(0xE1, 0xEE), 0xEF, 0xFE}
_EXIF_HEADING, _XMP_HEADING = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"


def parse_jpeg(encoded: bytes) -> ImageFile:
    """Split a JPEG by walking its segments up to the pixels, or to the first malformed one."""
    exif = xmp = b""
    spans: list[tuple[int, int]] = []
    begin, offset, size = 0, 2, len(encoded)
    # This runs for every JPEG that is read, so it is optimised for speed.
    while offset + 4 <= size:
        if encoded[offset] != 0xFF:
            offset = encoded.find(b"\xff", offset)
            if offset < 0:
                break
            continue
        marker = encoded[offset + 1]
        if marker in (_START_OF_SCAN, _END_OF_IMAGE):
            break
        if marker == 0xFF or marker in _WITHOUT_LENGTH:
            offset += 1 if marker == 0xFF else 2
            continue
        end = offset + 2 + (encoded[offset + 2] << 8 | encoded[offset + 3])
        if end < offset + 4 or end > size:
            break
        if marker in _JPEG_METADATA:
            if marker == _APP1 and encoded.startswith(_EXIF_HEADING, offset + 4):
                # Data that do not fit into one segment are continued in the next.
                exif += encoded[offset + 4 + len(_EXIF_HEADING) : end]
            elif marker == _APP1 and encoded.startswith(_XMP_HEADING, offset + 4):
                xmp = encoded[offset + 4 + len(_XMP_HEADING) : end]
            spans.append((begin, offset))
            begin = end
        offset = end
    spans.append((begin, size))
    return ImageFile(encoded, spans, exif, xmp)


PNG_HEADER_END = 33


def parse_png(encoded: bytes, *, transparency: bool) -> ImageFile:
    """Split a PNG by walking its chunks; everything after a malformed one belongs to the image.

    Args:
        encoded: the file's bytes.
        transparency: whether the transparent colour, or a palette's transparency, is retained.
    """
    exif = raw_profile = xmp = b""
    spans = [(0, 8)]
    end = 8
    for kind, begin, end in _png_chunks(encoded):
        if kind[:1].isupper() or (transparency and kind == b"tRNS"):
            spans.append((begin, end))
        elif kind == b"eXIf":
            exif = encoded[begin + 8 : end - 4]
        elif kind in _PNG_TEXT_KINDS:
            keyword, text = _parse_png_text(kind, encoded[begin + 8 : end - 4])
            if keyword in _RAW_PROFILE_KEYWORDS:
                raw_profile = _parse_raw_profile(text)
            elif keyword == b"XML:com.adobe.xmp":
                xmp = text
    if end < len(encoded):
        spans.append((end, len(encoded)))
    return ImageFile(encoded, spans, exif or raw_profile, xmp)


def png_critical_chunks(file: ImageFile) -> bytes | None:
    """Return a PNG of the header and compressed pixels alone; None if a checksum is wrong."""
    encoded, parts, kind = file.encoded, [file.encoded[:8]], b""
    for begin, end in file.spans[1:]:
        kind = encoded[begin + 4 : begin + 8]
        if kind in (b"IHDR", b"IDAT", b"IEND"):
            if zlib.crc32(encoded[begin + 4 : end - 4]) != int.from_bytes(encoded[end - 4 : end]):
                return None
            parts.append(encoded[begin:end])
    return b"".join(parts) if kind == b"IEND" else None


def _png_chunks(encoded: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (kind, begin, end) of each complete chunk, up to and including IEND."""
    begin = 8
    while begin + 12 <= len(encoded):
        length, kind = struct.unpack_from(">I4s", encoded, begin)
        end = begin + 12 + length
        if end > len(encoded):
            return
        yield kind, begin, end
        if kind == b"IEND":
            return
        begin = end


_PNG_TEXT_KINDS = {b"tEXt", b"zTXt", b"iTXt"}
_RAW_PROFILE_KEYWORDS = {b"Raw profile type exif", b"Raw profile type APP1"}


def _parse_png_text(kind: bytes, content: bytes) -> tuple[bytes, bytes]:
    """Return keyword and text of a chunk; the text is empty if it cannot be decompressed."""
    keyword, _, text = content.partition(b"\0")
    compressed = kind == b"zTXt"
    if compressed:
        text = text[1:]  # skip the compression method: there is only one
    elif kind == b"iTXt":
        compressed, text = text[:1] == b"\1", text[2:].partition(b"\0")[2].partition(b"\0")[2]
    if not compressed:
        return keyword, text
    try:
        return keyword, zlib.decompressobj().decompress(text, _MAX_TEXT_LENGTH)
    except zlib.error:
        return keyword, b""


def _parse_raw_profile(text: bytes) -> bytes:
    """Decode ImageMagick's raw profile: a name, the length, and the bytes in hexadecimal."""
    try:
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return b""
