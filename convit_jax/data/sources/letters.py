"""Letters of many fonts as a TFDS dataset: a test of generalisation to unseen styles.

No picture is stored or downloaded. The fonts are those of two Python packages: matplotlib and
trdg (https://github.com/Belval/TextRecognitionDataGenerator), whose outlines are drawn once with
Pillow.
"""

import importlib.util
import string
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageDraw, ImageFont

from convit_jax.errors import InputError

# The beginnings of the files' names, one for each family. Families, not files, are split, since the
# weights of a family (Lato has 18) are alike. Droid Sans and Open Sans are by one hand, so they are
# in one split. Both splits have plain, serif and display fonts.
TRAIN_FAMILIES = (
    *("Amatic", "BEBAS", "Caviar", "Droid", "Lato", "OpenSans", "Raleway", "Roboto"),
    *("STIXGeneral", "Sansation", "cmb", "cmmi", "cmr", "cmss", "cmti", "cmtt"),
)
TEST_FAMILIES = ("Aller", "Capture", "DejaVu", "FFF", "Pacifico", "SEASRN", "Walkway")
TRAIN_FONTS, TEST_FONTS = 89, 33
_SYMBOL_FONTS = ("DejaVuSansDisplay", "DejaVuSerifDisplay")  # without letters

IMAGE_SIZE = 28
_SCALE = 4  # letters are drawn and posed at this multiple of the image's size
_LETTER_SIZE = 20  # longer side of an upright letter, as MNIST's
_INSTALL = "pip install --no-deps trdg==1.8.0"  # its dependencies include a second OpenCV


class Letters(tfds.core.GeneratorBasedBuilder):
    """6,344 letters of 28x28 pixels, 4,628 of 89 fonts to train on and 1,716 of 33 others to test.

    The classes are the 26 letters, without regard to case. Each picture has a pose of its own:
    turned by up to 30 degrees, sheared by up to 0.3, scaled by 0.7 to 1.1, and shifted by up to two
    pixels in each direction.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(IMAGE_SIZE, IMAGE_SIZE, 1), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=list(string.ascii_uppercase)),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        fonts = font_files()
        train, test = _of_families(fonts, TRAIN_FAMILIES), _of_families(fonts, TEST_FAMILIES)
        if (len(train), len(test)) != (TRAIN_FONTS, TEST_FONTS):
            raise InputError(
                f"{len(train)} fonts to train on and {len(test)} to test, expected the "
                f"{TRAIN_FONTS} and {TEST_FONTS} of matplotlib and trdg 1.8: {_INSTALL}"
            )
        return {"train": self._generate_examples(train), "test": self._generate_examples(test)}

    def _generate_examples(self, fonts: list[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
        for path in fonts:
            font = ImageFont.truetype(path, 80, layout_engine=ImageFont.Layout.BASIC)
            for character in string.ascii_letters:
                name = f"{path.stem} {character}"
                rng = np.random.default_rng(zlib.crc32(name.encode()))
                # The lower-case l looks like the capital I in many fonts: a second L instead.
                image = draw_letter(font, "L" if character == "l" else character, rng)
                label = string.ascii_uppercase.index(character.upper())
                yield name, {"image": image, "label": label}


def font_files() -> list[Path]:
    """Return the fonts of matplotlib and trdg, also those that are not used.

    Raises:
        InputError: trdg is not installed.
    """
    # Neither package is imported.
    directories = {"matplotlib": "mpl-data/fonts/ttf", "trdg": "fonts/latin"}
    files: list[Path] = []
    for package, directory in directories.items():
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise InputError(f"the letters need the fonts of {package}: {_INSTALL}")
        files += Path(spec.submodule_search_locations[0], directory).glob("*.ttf")
    return files


def _of_families(fonts: list[Path], families: tuple[str, ...]) -> list[Path]:
    """Return the fonts of some families, by name."""
    chosen = [font for font in fonts if font.stem.startswith(families)]
    return sorted((f for f in chosen if f.stem not in _SYMBOL_FONTS), key=lambda font: font.stem)


def draw_letter(
    font: ImageFont.FreeTypeFont, character: str, rng: np.random.Generator
) -> np.ndarray:
    """Draw a letter in a random pose, white on black.

    The upright letter is scaled to the same size whatever its case, and centred.

    Returns:
        uint8 [28, 28, 1].
    """
    side = IMAGE_SIZE * _SCALE
    left, top, right, bottom = font.getbbox(character)
    letter = Image.new("L", (round(right - left), round(bottom - top)))
    ImageDraw.Draw(letter).text((-left, -top), character, fill=255, font=font)
    letter = letter.crop(letter.getbbox())
    scale = _LETTER_SIZE * _SCALE / max(letter.size)
    letter = letter.resize([max(1, round(length * scale)) for length in letter.size])
    canvas = Image.new("L", (side, side))
    canvas.paste(letter, ((side - letter.width) // 2, (side - letter.height) // 2))

    angle = np.deg2rad(rng.uniform(-30, 30))
    shear, zoom = rng.uniform(-0.3, 0.3), rng.uniform(0.7, 1.1)
    shift = rng.uniform(-2, 2, size=2) * _SCALE
    cos, sin = np.cos(angle), np.sin(angle)
    # From a place in the picture to the one in the upright letter, both from the centre.
    inverse = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, shear], [0, 1]]) / zoom
    centre = np.full(2, side / 2)
    offset = centre - inverse @ (centre + shift)
    coefficients = (*inverse[0], offset[0], *inverse[1], offset[1])
    posed = canvas.transform(
        canvas.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
    )
    return np.asarray(posed.reduce(_SCALE))[..., None]
