"""Real-world image files: what cameras, scanners and programs write into them."""

import io
import struct
import tracemalloc
import zlib
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image, ImageOps

import convit_jax
from convit_jax.data.images.decoding import MAX_PIXELS, BrokenImageError, decode
from convit_jax.data.images.resizing import resize_and_centre_crop, resize_exactly, resize_fast
from convit_jax.data.sources import imagenet
from convit_jax.errors import InputError
from tests.field.builders import (
    WIDE,
    chunk,
    encode,
    entry,
    exif,
    orientation,
    photograph,
    segment,
    tiff_header,
    with_chunks,
    with_segments,
    xmp,
)

XMP_HEADING = b"http://ns.adobe.com/xap/1.0/\0"
JPEG, PNG = encode(photograph(), "JPEG", quality=95), encode(photograph(), "PNG")
# (height, width, channels) with and without a quarter turn
ROTATED_SHAPE = (WIDE[0], WIDE[1], 3)
SHAPE = (WIDE[1], WIDE[0], 3)


def upright_by_pillow(encoded, mode="RGB"):
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert(mode))


def jpeg_with(*metadata):
    """The photograph as a JPEG with segments of metadata, EXIF or XMP."""
    return with_segments(JPEG, *(segment(0xE1, content) for content in metadata))


def png_with(kind, content, last=False):
    """The photograph as a PNG with another chunk."""
    return with_chunks(PNG, chunk(kind, content), last=last)


def raw_profile(content):
    """ImageMagick's form of metadata: their length and their hexadecimal digits."""
    return b"\nexif\n%8d\n%s\n" % (len(content), content.hex().encode())


@pytest.mark.parametrize(
    "malformed",
    [
        entry(0x128, 2, 2, b"2\0\0\0"),
        entry(0x11A, 2, 3, b"72\0\0"),
        entry(0x11A, 5, 1, b"\xff\xff\xff\xff"),
        entry(0x8769, 4, 1, b"\xff\0\0\0"),
        entry(0x927C, 7, 1 << 30, b"\0\0\0\0"),
        entry(0x9999, 99, 1, b"\0\0\0\0"),
    ],
)
@pytest.mark.parametrize("malformed_first", [True, False])
def test_an_orientation_is_read_despite_a_malformed_tag(malformed, malformed_first):
    entries = (malformed, orientation()) if malformed_first else (orientation(), malformed)
    for file in (jpeg_with(exif(*entries)), png_with(b"eXIf", tiff_header(*entries))):
        assert decode(file, 3).shape == ROTATED_SHAPE
        assert convit_jax.preprocess(Image.open(io.BytesIO(file))).shape == (1, 224, 224, 3)


@pytest.mark.parametrize(
    "metadata",
    [
        b"Exif\0\0",
        b"Exif\0\0II",
        b"Exif\0\0garbage garbage garbage",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        exif(entry(0x112, 2, 2, b"6\0\0\0")),
        exif(entry(0x112, 3, 1 << 31, b"\0\0\0\0")),
        exif(entry(0x112, 3, 0, b"\6\0\0\0")),
        exif(orientation(9)),
        exif(orientation(0)),
        exif(orientation())[:-9],
        exif(orientation()).replace(b"II*", b"II?"),
        XMP_HEADING + b'tiff:Orientation="x"',
    ],
)
def test_malformed_metadata_are_ignored(metadata):
    assert np.array_equal(decode(jpeg_with(metadata), 3), decode(JPEG, 3))


# The locations of an orientation in a file that Pillow honours: functions of the orientation.
LOCATIONS = {
    "after Photoshop's 6 kB": lambda v: with_segments(
        JPEG, segment(0xED, b"x" * 6000), segment(0xE1, exif(orientation(v)))
    ),
    "after a colour profile": lambda v: with_segments(
        JPEG,
        segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(60000)),
        segment(0xE1, exif(orientation(v))),
    ),
    "after fill bytes": lambda v: with_segments(
        JPEG, b"\xff\xff\xff", segment(0xE1, exif(orientation(v)))
    ),
    "big-endian": lambda v: jpeg_with(exif(orientation(v, ">"), order=">")),
    "as a long number": lambda v: jpeg_with(exif(entry(0x112, 4, 1, struct.pack("<I", v)))),
    "several numbers": lambda v: jpeg_with(exif(entry(0x112, 3, 2, struct.pack("<HH", v, 1)))),
    "as a fraction": lambda v: jpeg_with(
        exif(entry(0x112, 5, 1, struct.pack("<I", 26)), after=struct.pack("<II", v, 1))
    ),
    "two headings": lambda v: jpeg_with(b"Exif\0\0" + exif(orientation(v))),
    "two segments: the first counts": lambda v: jpeg_with(
        exif(orientation(v)), exif(orientation(3))
    ),
    "JPEG's XMP": lambda v: jpeg_with(XMP_HEADING + xmp(v)),
    "XMP as an element": lambda v: jpeg_with(
        XMP_HEADING + b"<tiff:Orientation>%d</tiff:Orientation>" % v
    ),
    "EXIF before XMP": lambda v: jpeg_with(XMP_HEADING + xmp(3), exif(orientation(v))),
    "PNG's eXIf": lambda v: png_with(b"eXIf", tiff_header(orientation(v))),
    "eXIf after the pixels": lambda v: png_with(b"eXIf", tiff_header(orientation(v)), last=True),
    "PNG's raw profile, compressed": lambda v: png_with(
        b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw_profile(exif(orientation(v))))
    ),
    "PNG's raw profile, as text": lambda v: png_with(
        b"tEXt", b"Raw profile type exif\0" + raw_profile(exif(orientation(v)))
    ),
    "PNG's XMP": lambda v: png_with(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(v)),
    "PNG's XMP, compressed": lambda v: png_with(
        b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp(v))
    ),
    "WebP": lambda v: encode(photograph(), "WEBP", lossless=True, exif=exif(orientation(v))),
    "WebP's XMP": lambda v: encode(photograph(), "WEBP", lossless=True, xmp=xmp(v)),
    "TIFF": lambda v: encode(photograph(), "TIFF", tiffinfo={0x112: v}),
    "compressed TIFF": lambda v: encode(
        photograph(), "TIFF", tiffinfo={0x112: v}, compression="tiff_lzw"
    ),
    "AVIF": lambda v: encode(photograph(), "AVIF", quality=95, exif=exif(orientation(v))),
}


@pytest.mark.parametrize("location", LOCATIONS)
def test_an_orientation_is_honoured_in_every_location(location):
    for value in range(1, 9):
        file = LOCATIONS[location](value)
        expected = upright_by_pillow(file)
        assert expected.shape == (ROTATED_SHAPE if value > 4 else SHAPE)
        assert np.array_equal(decode(file, 3), expected)


@pytest.mark.parametrize("location", LOCATIONS)
def test_an_orientation_is_ignored_on_request(location):
    upright = decode(LOCATIONS[location](1), 3)
    if location != "AVIF":  # its encoder knows the orientation and may choose other blocks
        assert np.array_equal(decode(LOCATIONS[location](6), 3, False), upright)
    assert decode(LOCATIONS[location](6), 3, False).shape == SHAPE


def test_imagemagicks_app1_profile_is_exif():
    file = png_with(b"tEXt", b"Raw profile type APP1\0" + raw_profile(exif(orientation())))
    assert decode(file, 3).shape == ROTATED_SHAPE


MODES = (
    *("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB"),
    *("HSV", "I", "I;16", "I;16B", "I;16L", "F"),
)


def photograph_of_mode(mode):
    """The photograph in any of Pillow's modes, also those that `convert` does not support."""
    if mode.startswith("I"):
        grey = np.asarray(photograph(mode="L")).astype(np.uint32) * 257
        kind = {"I": "<i4", "I;16B": ">u2"}.get(mode, "<u2")
        return Image.frombytes(mode, WIDE, grey.astype(kind).tobytes())
    if mode in ("La", "RGBa"):
        return photograph(mode={"La": "LA", "RGBa": "RGBA"}[mode]).convert(mode)
    if mode == "PA":
        return photograph(mode="P").convert("PA")
    if mode == "LAB":
        from PIL import ImageCms

        profiles = (ImageCms.createProfile(name) for name in ("sRGB", "LAB"))
        return ImageCms.profileToProfile(photograph(), *profiles, outputMode="LAB")
    return photograph(mode=mode)


@pytest.mark.parametrize("mode", MODES)
def test_a_pillow_image_may_have_any_mode(mode):
    """The pixels are the same in every mode, up to the mode's precision."""
    image = photograph_of_mode(mode)
    normalised = convit_jax.preprocess(image, image_size=(16, 24), crop_fraction=1.0)
    pixels = 255 * (normalised[0] * imagenet.STD + imagenet.MEAN)
    bands = "L" if mode in ("1", "L", "LA", "La", "F") or mode.startswith("I") else "RGB"
    expected = np.asarray(photograph().convert(bands).convert("RGB")).astype(float)
    # Black and white, 256 colours and CIELAB are inexact.
    tolerance = {"1": 130, "P": 20, "PA": 20, "LAB": 3, "HSV": 3, "YCbCr": 2, "F": 0.6}.get(
        mode, 0.51
    )
    assert np.abs(pixels - expected).mean() <= tolerance


# The modes that each file format can store, perhaps as an equivalent mode.
STORABLE_MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B"),
    "TIFF": ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "LAB", "I", "I;16", "I;16B",
             "I;16L", "F"),
    "WEBP": ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "mode"), [(kind, mode) for kind, modes in STORABLE_MODES.items() for mode in modes]
)
def test_a_pillow_image_gives_the_same_result_as_its_file(mode, kind, tmp_path):
    image = photograph_of_mode(mode)
    image.save(tmp_path / "image", kind, **({"lossless": True} if kind == "WEBP" else {}))
    from_file = convit_jax.preprocess(tmp_path / "image", image_size=16)
    from_memory = convit_jax.preprocess(image, image_size=16)
    assert np.abs(from_file - from_memory).max() < 0.06  # premultiplied colours lose a level or two


def test_the_scale_of_sixteen_bits_and_of_floats():
    """16 bits are scaled from 65,535, floats from 255; values outside the range are clipped."""
    for mode, values in (("I", [-5, 0, 65535, 99999]), ("F", [-5.0, 0.9, 255.0, np.nan])):
        pixels = np.array([values], np.int32 if mode == "I" else np.float32)
        assert decode(encode(Image.fromarray(pixels), "TIFF"), 1)[0, :, 0].tolist() == (
            [0, 0, 255, 255] if mode == "I" else [0, 0, 255, 0]
        )


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no images"),
        (iter(()), "no images"),
        ([[1, 2], [3, 4]], "image 0: of type list, expected a path"),
        (None, "of type NoneType: expected a path"),
        (7, "of type int"),
        ([np.zeros((0, 8, 3), np.uint8)], r"image 0: \(0, 8, 3\): expected at least one pixel"),
        (np.zeros((8, 8, 3), np.float32), r"float32 \(8, 8, 3\): expected uint8"),
        ([JPEG, b"no image"], "image 1: not an image of a known format"),
        (["nowhere.jpg"], "no image at nowhere.jpg"),
    ],
)
def test_invalid_images_are_input_errors(images, message):
    with pytest.raises(InputError, match=message):
        convit_jax.preprocess(images)


@pytest.mark.parametrize(
    "options",
    [
        {"image_size": 0}, {"image_size": (8, -8)}, {"image_size": (8, 8, 8)},
        {"image_size": "big"}, {"crop_fraction": 0.0}, {"crop_fraction": float("nan")},
        {"std": (0.1, 0.2)}, {"std": (1.0, 0.0, 1.0)}, {"mean": (0.0,) * 5, "std": (1.0,) * 5},
        {"mean": None},
    ],
)  # fmt: skip
def test_invalid_settings_are_input_errors(options):
    with pytest.raises(InputError):
        convit_jax.preprocess(JPEG, **options)


def test_images_come_in_lists_tensors_and_generators(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is an optional extra")
    (tmp_path / "a.jpg").write_bytes(JPEG)
    pixels = decode(JPEG, 3)
    expected = convit_jax.preprocess([JPEG, JPEG])
    for images in (
        (tmp_path / "a.jpg" for _ in range(2)),
        [bytearray(JPEG), memoryview(JPEG)],
        np.stack([pixels, pixels]),
        torch.from_numpy(np.stack([pixels, pixels])),
        (pixels, torch.from_numpy(pixels)),
    ):
        assert np.array_equal(convit_jax.preprocess(images), expected)


def test_a_strip_of_sixty_thousand_by_one_needs_little_memory(tmp_path):
    wide = encode(Image.fromarray(np.arange(60000).astype(np.uint8)[None] // 2), "PNG")
    tall = encode(Image.open(io.BytesIO(wide)).rotate(90, expand=True), "PNG")
    for strip in (wide, tall):
        decode(strip, 3)
        tracemalloc.start()
        assert convit_jax.preprocess(strip).shape == (1, 224, 224, 3)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8e6
        for channels in (1, 3):
            assert resize_fast(decode(strip, channels), (224, 224)).shape == (224, 224, channels)


@pytest.mark.parametrize("shape", [(40, 900), (900, 40), (9, 400), (33, 640)])
def test_the_centre_crop_of_a_strip_is_the_centre_of_the_scaled_strip(shape):
    """Only the crop is scaled; the result is the same as from scaling the whole strip."""
    rng = np.random.default_rng(1)
    small = Image.fromarray(rng.integers(0, 255, (8, 60, 3), dtype=np.uint8))
    strip = np.asarray(small.resize(shape[::-1], Image.Resampling.BICUBIC))
    size = (32, 32)
    height, width = (round(side * 36 / min(shape)) for side in shape)
    scaled = resize_exactly(strip, (height, width))
    top, left = round((height - 32) / 2), round((width - 32) / 2)
    crop = resize_and_centre_crop(strip, size, 32 / 36)
    difference = np.abs(crop.astype(int) - scaled[top : top + 32, left : left + 32])
    assert difference.max() <= 1


def file_declaring_huge_size(kind):
    """A small file whose header declares more pixels than are decoded."""
    size = struct.pack(">II", 14000, 14000)
    if kind == "png":
        return PNG[:16] + size + PNG[24:29] + struct.pack(">I", 0) + PNG[33:]
    if kind == "jpeg":
        offset = JPEG.index(b"\xff\xc0") + 5
        return JPEG[:offset] + struct.pack(">HH", 14000, 14000) + JPEG[offset + 4 :]
    if kind == "rotated png":
        file = file_declaring_huge_size("png")
        return with_chunks(file, chunk(b"eXIf", tiff_header(orientation())))
    if kind == "rotated jpeg":
        file = file_declaring_huge_size("jpeg")
        return with_segments(file, segment(0xE1, exif(orientation())))
    if kind == "bmp":
        bmp = encode(photograph(), "BMP")
        return bmp[:18] + struct.pack("<II", 14000, 14000) + bmp[26:]
    return encode(photograph(), "GIF")[:6] + struct.pack("<HH", 14000, 14000)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", ["png", "jpeg", "rotated png", "rotated jpeg", "bmp"])
def test_an_image_of_196_megapixels_is_refused_before_it_is_decoded(kind, channels):
    tracemalloc.start()
    with pytest.raises(BrokenImageError) as raised:
        decode(file_declaring_huge_size(kind), channels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6
    message = str(raised.value).replace(",", "")
    assert str(14000 * 14000) in message or "14000 x 14000" in message
    assert str(MAX_PIXELS) in message


def test_a_pillow_image_that_is_too_large_is_refused_too(monkeypatch):
    from convit_jax.data.images import decoding

    monkeypatch.setattr(decoding, "MAX_PIXELS", 100)
    with pytest.raises(InputError, match="24 x 16 are 384 pixels: at most 100"):
        convit_jax.preprocess(photograph())


def test_of_animations_and_several_pages_the_first_is_decoded():
    pages = [photograph(), photograph().rotate(180)]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        animation = encode(pages[0], kind, save_all=True, append_images=pages[1:], **options)
        single = encode(pages[0], kind, **options)
        assert np.array_equal(decode(animation, 3), decode(single, 3))


def test_formats_that_need_other_programs_are_not_images():
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    for encoded in (postscript, b"\xd7\xcd\xc6\x9a" + bytes(40), b"%PDF-1.4\n"):
        with pytest.raises(BrokenImageError, match="not an image of a known format"):
            decode(encoded, 3)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("x"), NotImplementedError("y"), TypeError("z"), struct.error("s"), KeyError("k"),
     RecursionError("deep"), AssertionError(), ZeroDivisionError("0"), MemoryError("m"),
     UnicodeDecodeError("utf8", b"", 0, 1, "u"), OverflowError("o"), AttributeError("a")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_any_exception_of_a_decoder_is_a_broken_image(error, monkeypatch):
    monkeypatch.setattr(Image, "open", Mock(side_effect=error))
    with pytest.raises(BrokenImageError, match=r"\w"):
        decode(encode(photograph(), "WEBP"), 3)


def test_a_dds_of_an_unknown_pixel_format_is_broken():
    dds = bytearray(encode(photograph(mode="RGBA"), "DDS"))
    dds[80:84] = struct.pack("<I", 0x4)  # the pixel format has a name …
    dds[84:88] = b"ABCD"  # … which is unknown
    with pytest.raises(BrokenImageError, match=r"\w"):
        decode(bytes(dds), 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000"])
def test_corrupted_files_are_images_or_broken(kind):
    """With 120 random mutations of each format."""
    encoded = encode(photograph(), kind)
    rng = np.random.default_rng(0)
    for _ in range(120):
        corrupted = bytearray(encoded)
        for position in rng.integers(len(encoded), size=rng.integers(1, 6)):
            corrupted[position] = rng.integers(256)
        if rng.random() < 0.3:
            corrupted = corrupted[: rng.integers(1, len(encoded) + 1)]
        try:
            pixels = decode(bytes(corrupted), 3)
        except BrokenImageError:
            continue
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3


PROGRAM = """
import io, sys, zlib

import numpy as np
from tests.field.builders import *
from convit_jax.data.images.decoding import decode, BrokenImageError
png, jpeg = encode(photograph(), "PNG"), encode(photograph(), "JPEG")
files = [
    with_chunks(png, chunk(b"iCCP", b"bad\\0\\0" + zlib.compress(b"x" * 50))),
    with_chunks(png, chunk(b"iCCP", b"sRGB\\0\\0" + zlib.compress(b"y" * 300))),
    with_chunks(png, chunk(b"tRNS", b"\\0\\1")),
    with_chunks(png, chunk(b"gAMA", b"\\0")),
    with_chunks(png, chunk(b"tEXt", b"no keyword")),
    encode(photograph(mode="P"), "PNG", transparency=bytes(range(256))),
    with_segments(jpeg, segment(0xE1, exif(entry(0x9286, 7, 9999, bytes(4))))),
    with_segments(jpeg, segment(0xE2, b"MPF\\0garbage")),
    encode(Image.new("1", (10000, 9500)), "PNG"),
    encode(photograph(), "WEBP", exif=exif(entry(0x9286, 7, 9999, bytes(4)))),
    encode(photograph(), "JPEG")[:-300],
    png[:-30],
    b"GIF89a" + bytes(30), b"II*\\0" + bytes(30), b"BM" + bytes(60),
]
for channels in (1, 3, 4):
    for file in files:
        try:
            decode(file, channels)
        except BrokenImageError:
            pass
"""


def test_libraries_print_no_warnings(run_python):
    completed = run_python("-W", "always", "-c", PROGRAM, timeout=60)
    assert (completed.returncode, completed.stdout, completed.stderr) == (0, "", "")


@pytest.mark.parametrize("scale", [1.3, 2.2, 3.1, 4.3, 6.0, 9.7, 13.0])
def test_a_large_photograph_is_scaled_for_training_without_aliasing(scale):
    """Close to Pillow up to a shrinkage of 13, that of twelve megapixels to 224."""
    from sklearn.datasets import load_sample_image

    image = Image.fromarray(load_sample_image("china.jpg"))
    side = int(128 * scale)
    large = np.asarray(image.resize((side + side // 3, side), Image.Resampling.BICUBIC))
    rng = np.random.default_rng(0)
    large = np.clip(large + rng.normal(0, 20, large.shape), 0, 255).astype(np.uint8)
    for size in ((128, 128), (128, 171)):
        fast, exact = resize_fast(large, size).astype(int), resize_exactly(large, size).astype(int)
        assert np.abs(fast - exact).mean() < 2.2
        # Aliasing would increase the sharpness, not only change the values.
        assert np.abs(np.diff(fast, axis=1)).mean() < 1.15 * np.abs(np.diff(exact, axis=1)).mean()


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_each_channel_is_scaled_by_itself(channels):
    rng = np.random.default_rng(2)
    bands = rng.integers(0, 255, (50, 70, channels), dtype=np.uint8)
    for resize in (
        lambda image: resize_fast(image, (16, 16)),
        lambda image: resize_exactly(image, (20, 24)),
        lambda image: resize_and_centre_crop(image, (16, 16), 0.875),
    ):
        scaled = resize(bands)
        separate = [resize(np.ascontiguousarray(bands[..., c : c + 1])) for c in range(channels)]
        difference = np.abs(scaled.astype(int) - np.concatenate(separate, axis=2))
        assert difference.max() <= 1  # OpenCV's rounding depends on the number of channels


def test_four_channels_are_the_files():
    pixels = np.random.default_rng(3).integers(0, 255, (8, 9, 4), dtype=np.uint8)
    rgba = Image.fromarray(pixels)
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(decode(encode(rgba, kind), 4), pixels)
    opaque = decode(JPEG, 4)
    assert np.array_equal(opaque[..., :3], decode(JPEG, 3))
    assert np.all(opaque[..., 3] == 255)
    assert decode(encode(photograph(mode="LA"), "PNG"), 2).shape == (*SHAPE[:2], 2)


def test_a_fourth_band_that_is_not_alpha_is_an_error():
    """Pillow reads a fourth band stored as alpha, and omits one of unspecified meaning."""
    pixels = np.random.default_rng(4).integers(0, 255, (8, 9, 4), dtype=np.uint8)
    tiff = encode(Image.fromarray(pixels), "TIFF")
    assert np.array_equal(decode(tiff, 4), pixels)
    offset = tiff.index(struct.pack("<HHI", 338, 3, 1))  # ExtraSamples
    unspecified = tiff[: offset + 8] + bytes(2) + tiff[offset + 10 :]
    assert np.array_equal(decode(unspecified, 3), pixels[..., :3])
    with pytest.raises(BrokenImageError, match="only 3 of its 4 bands can be read"):
        decode(unspecified, 4)
