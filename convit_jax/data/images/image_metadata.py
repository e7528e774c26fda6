"""What stands beside the pixels of a JPEG or PNG: the orientation is read, the rest is left out.

Of all that cameras and programs write into images (EXIF, XMP, colour profiles, texts) only one
number matters here: which way up the pixels are. It is read by itself, so that nothing else in the
metadata can do harm, and the decoders get the file without them: they neither stumble over what is
malformed nor print what they think of it.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np

UPRIGHT = 1
# Left and right change places (1), top and bottom (0), or both (-1).
_MIRRORS = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}

_ORIENTATION = 0x0112
# A value of the tag's, by the number of its type: whole numbers as EXIF has them, and the
# fractions that Pillow takes for them.
_VALUES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d"}
_FRACTIONS = {5: "II", 10: "ii"}
_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')

# Text of a PNG that is unpacked to look for EXIF in it, at most.
_LONGEST_TEXT = 1 << 20


class ImageFile(NamedTuple):
    """A JPEG or PNG without its metadata.

    Attributes:
        encoded: the file's bytes.
        kept: the parts of it that decoding needs, (begin, end) of each, in order.
        exif: what EXIF there is, with or without its heading.
        xmp: what XMP there is.
    """

    encoded: bytes
    kept: list[tuple[int, int]]
    exif: bytes = b""
    xmp: bytes = b""

    @property
    def orientation(self) -> int:
        """1 to 8 as EXIF numbers them; 1, upright, where nothing valid says otherwise."""
        if not (self.exif or self.xmp):
            return UPRIGHT
        return orientation_of(self.exif, self.xmp)

    @property
    def bare(self) -> bytes:
        """The file without metadata."""
        return b"".join(self.encoded[begin:end] for begin, end in self.kept)


def orientation_of(exif: bytes, xmp: bytes) -> int:
    """EXIF's orientation, where it has one, else XMP's; 1 where neither is well-formed."""
    told = _of_exif(exif)
    if told is None:
        match = _XMP.search(xmp)
        told = int(match[1]) if match else UPRIGHT
    return told if 1 <= told <= 8 else UPRIGHT


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels [H, W, C] as they were taken, made upright: [H, W, C] or [W, H, C]."""
    channels = pixels.shape[2]
    if orientation >= 5:
        pixels = cv2.transpose(pixels)
    # After that all that is left are mirrors, which OpenCV has numbers for.
    if orientation in _MIRRORS:
        pixels = cv2.flip(pixels, _MIRRORS[orientation])
    return pixels.reshape(*pixels.shape[:2], channels)


def _of_exif(exif: bytes) -> int | None:
    """The orientation in a TIFF header's first directory; None where there is none to read."""
    tiff = re.sub(rb"^(?:Exif\0\0){1,2}", b"", exif)
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or tiff[2:4] not in (b"*\0", b"\0*"):
        return None
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(entries):
            place = directory + 2 + 12 * entry
            tag, kind, count = struct.unpack_from(f"{order}HHI", tiff, place)
            if tag == _ORIENTATION and count:
                return _whole_number(tiff, order, place + 8, kind, count)
    except struct.error:
        pass  # it ends too early
    return None


def _whole_number(tiff: bytes, order: str, place: int, kind: int, count: int) -> int:
    """The first value of an entry, which is upright where it is no whole number."""
    form = order + (_VALUES.get(kind) or _FRACTIONS.get(kind) or "")
    if count * struct.calcsize(form) > 4:
        (place,) = struct.unpack_from(f"{order}I", tiff, place)
    values = struct.unpack_from(form, tiff, place)
    if kind in _FRACTIONS:
        value = values[0] / values[1] if values[1] else UPRIGHT
    else:
        value = values[0] if values else UPRIGHT
    return int(value) if value in range(1, 9) else UPRIGHT


# JPEG: a marker (two bytes, of which the first is FF), and for most a length that counts itself.
_START_OF_SCAN, _END_OF_IMAGE, _APP1 = 0xDA, 0xD9, 0xE1
_WITHOUT_LENGTH = {0x00, 0x01, *range(0xD0, 0xD9)}
# APP0 (JFIF) and APP14 (Adobe) say which colours the pixels have; the other applications' segments
# and comments are metadata.
_JPEG_METADATA = {*range(0xE1, 0xEE), 0xEF, 0xFE}
_EXIF_HEADING, _XMP_HEADING = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"


def read_jpeg(encoded: bytes) -> ImageFile:
    """Walks a JPEG's segments up to its pixels; where they are malformed it stops."""
    exif = xmp = b""
    kept: list[tuple[int, int]] = []
    begin, place, size = 0, 2, len(encoded)
    # Every file that is read comes this way: it is written for speed.
    while place + 4 <= size:
        if encoded[place] != 0xFF:
            place = encoded.find(b"\xff", place)
            if place < 0:
                break
            continue
        marker = encoded[place + 1]
        if marker in (_START_OF_SCAN, _END_OF_IMAGE):
            break
        if marker == 0xFF or marker in _WITHOUT_LENGTH:
            place += 1 if marker == 0xFF else 2
            continue
        end = place + 2 + (encoded[place + 2] << 8 | encoded[place + 3])
        if end < place + 4 or end > size:
            break
        if marker in _JPEG_METADATA:
            if marker == _APP1 and encoded.startswith(_EXIF_HEADING, place + 4):
                # What does not fit a segment goes on in the next.
                exif += encoded[place + 4 + len(_EXIF_HEADING) : end]
            elif marker == _APP1 and encoded.startswith(_XMP_HEADING, place + 4):
                xmp = encoded[place + 4 + len(_XMP_HEADING) : end]
            kept.append((begin, place))
            begin = end
        place = end
    kept.append((begin, size))
    return ImageFile(encoded, kept, exif, xmp)


PNG_HEADER_END = 33


def read_png(encoded: bytes, *, transparency: bool) -> ImageFile:
    """Walks a PNG's chunks; where they are malformed it stops and keeps the rest.

    Args:
        encoded: the file.
        transparency: whether to keep the colour that is transparent, or a palette's transparency.
    """
    exif = raw = xmp = b""
    kept = [(0, 8)]
    end = 8
    for kind, place, end in _png_chunks(encoded):
        if kind[:1].isupper() or (transparency and kind == b"tRNS"):
            kept.append((place, end))
        elif kind == b"eXIf":
            exif = encoded[place + 8 : end - 4]
        elif kind in _TEXTS:
            keyword, text = _png_text(kind, encoded[place + 8 : end - 4])
            if keyword in _RAW_EXIF:
                raw = _unhexed(text)
            elif keyword == b"XML:com.adobe.xmp":
                xmp = text
    if end < len(encoded):
        kept.append((end, len(encoded)))
    return ImageFile(encoded, kept, exif or raw, xmp)


def png_pixels_alone(file: ImageFile) -> bytes | None:
    """A PNG's header and compressed pixels; None where its checksums say that it is damaged."""
    encoded, alone, kind = file.encoded, [file.encoded[:8]], b""
    for begin, end in file.kept[1:]:
        kind = encoded[begin + 4 : begin + 8]
        if kind in (b"IHDR", b"IDAT", b"IEND"):
            if zlib.crc32(encoded[begin + 4 : end - 4]) != int.from_bytes(encoded[end - 4 : end]):
                return None
            alone.append(encoded[begin:end])
    return b"".join(alone) if kind == b"IEND" else None


def _png_chunks(encoded: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The kind of each whole chunk, and where it begins and ends, up to the last one's."""
    place = 8
    while place + 12 <= len(encoded):
        length, kind = struct.unpack_from(">I4s", encoded, place)
        end = place + 12 + length
        if end > len(encoded):
            return
        yield kind, place, end
        if kind == b"IEND":
            return
        place = end


_TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
_RAW_EXIF = {b"Raw profile type exif", b"Raw profile type APP1"}


def _png_text(kind: bytes, content: bytes) -> tuple[bytes, bytes]:
    """Keyword and text of a chunk; the text is empty where it cannot be unpacked."""
    keyword, _, text = content.partition(b"\0")
    packed = kind == b"zTXt"
    if packed:
        text = text[1:]  # the method, of which there is one
    elif kind == b"iTXt":
        packed, text = text[:1] == b"\1", text[2:].partition(b"\0")[2].partition(b"\0")[2]
    if not packed:
        return keyword, text
    try:
        return keyword, zlib.decompressobj().decompress(text, _LONGEST_TEXT)
    except zlib.error:
        return keyword, b""


def _unhexed(text: bytes) -> bytes:
    """ImageMagick's way to write bytes as text: a name, their number, and hexadecimal digits."""
    try:
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return b""
