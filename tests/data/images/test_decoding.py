import io

import numpy as np
import pytest
from PIL import Image

from convit_jax.data.images.decoding import BrokenImageError, decode
from tests.field.builders import encode


@pytest.fixture(scope="module")
def photograph():
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image("flower.jpg")).resize((60, 40))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_those_of_pillow(photograph, kind, mode, channels):
    encoded = encode(photograph.convert(mode), kind)
    with Image.open(io.BytesIO(encoded)) as image:
        expected = np.asarray(image.convert("RGB" if channels == 3 else "L"))
    pixels = decode(encoded, channels)
    assert pixels.shape == (40, 60, channels)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels.squeeze(), expected)


@pytest.mark.parametrize(
    ("mode", "kind"), [("P", "PNG"), ("RGBA", "PNG"), ("LA", "PNG"), ("CMYK", "JPEG"), ("1", "BMP")]
)
def test_palettes_transparency_and_cmyk_become_colour(photograph, mode, kind):
    converted = photograph.convert(mode)
    pixels = decode(encode(converted, kind, **({"quality": 95} if kind == "JPEG" else {})), 3)
    difference = np.abs(pixels.astype(int) - np.asarray(converted.convert("RGB"))).mean()
    assert pixels.shape == (40, 60, 3)
    assert difference < (3 if kind == "JPEG" else 0.01)


def test_sixteen_bit_values_are_scaled_to_eight():
    values = np.linspace(0, 65535, 40 * 60).reshape(40, 60).astype(np.uint16)
    encoded = encode(Image.fromarray(values), "PNG")
    pixels = decode(encoded, 3)[..., 0]
    assert np.abs(pixels - values / 257).max() <= 0.51


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_honoured(photograph, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decode(encode(photograph, "PNG", exif=exif), 3)
    upright = np.asarray(photograph)
    expected = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, -1),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright),
    }[orientation]
    assert np.array_equal(pixels, expected)
    assert decode(encode(photograph, "JPEG", exif=exif), 3).shape == expected.shape


def test_stray_bytes_in_a_jpeg_are_tolerated(photograph):
    encoded = encode(photograph, "JPEG", quality=95)
    damaged = encoded[:-2] + b"\x00\x00\x00" + encoded[-2:]
    assert np.abs(decode(damaged, 3).astype(int) - decode(encoded, 3)).mean() < 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_half_an_image_is_broken(photograph, kind):
    encoded = encode(photograph, kind)
    with pytest.raises(BrokenImageError):
        decode(encoded[: len(encoded) // 2], 3)


@pytest.mark.parametrize(
    "encoded", [b"", b"hello", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n" + b"x" * 30]
)
def test_bytes_that_are_not_an_image_are_broken(encoded):
    with pytest.raises(BrokenImageError, match=r"\w"):
        decode(encoded, 3)
