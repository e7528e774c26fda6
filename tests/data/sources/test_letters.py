"""The letters, on stand-ins for trdg's fonts: copies of a font of matplotlib under their names."""

import pathlib
import shutil
import sys

import matplotlib
import numpy as np
import pytest
from PIL import ImageFont

from convit_jax.data import open_source
from convit_jax.data.images.decoding import decode
from convit_jax.data.sources import letters
from convit_jax.errors import InputError

MATPLOTLIB_FONTS = pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@pytest.fixture
def install_trdg(tmp_path, monkeypatch):
    """A function that installs a stand-in for trdg with so many fonts to train on and to test."""

    def install(train, test):
        directory = tmp_path / "trdg" / "fonts" / "latin"
        directory.mkdir(parents=True)
        (tmp_path / "trdg" / "__init__.py").touch()
        names = [f"Lato-{i}" for i in range(train)] + [f"Aller_{i}" for i in range(test)]
        for name in (*names, "Unknown"):
            (directory / f"{name}.ttf").symlink_to(MATPLOTLIB_FONTS / "DejaVuSans.ttf")
        monkeypatch.delitem(sys.modules, "trdg", raising=False)
        monkeypatch.syspath_prepend(tmp_path)

    return install


@pytest.fixture
def font():
    return ImageFont.truetype(MATPLOTLIB_FONTS / "DejaVuSans.ttf", 80)


class Upright:
    """A random generator whose values are those of an upright letter."""

    def uniform(self, low, high, size=None):
        value = 1.0 if low > 0 else 0.0
        return value if size is None else np.full(size, value)


@pytest.fixture
def few_fonts(install_trdg, monkeypatch, tfds_data_dir):
    """Letters of 11 fonts to train on and 13 to test; all but two are matplotlib's."""
    install_trdg(1, 1)
    monkeypatch.setattr(letters, "TRAIN_FONTS", 11)
    monkeypatch.setattr(letters, "TEST_FONTS", 13)
    yield
    shutil.rmtree(tfds_data_dir / "letters")


def test_all_letters_of_all_fonts_are_in_their_splits(few_fonts):
    for split, fonts in (("train", 11), ("test", 13)):
        source = open_source(f"letters:{split}")
        labels = np.bincount([source[i][1] for i in range(len(source))])
        assert source.class_names == tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
        assert labels.tolist() == [2 * fonts] * 26  # upper and lower case
    assert decode(source[0][0], channels=1).shape == (28, 28, 1)
    assert len(open_source("letters:train[:10]+test[:5]")) == 15
    with pytest.raises(InputError, match="no split 'tset', did you mean 'test'"):
        open_source("letters:tset")


@pytest.mark.parametrize("character", "oOIgm")
def test_an_upright_letter_is_centred_and_twenty_pixels_long(character, font):
    image = letters.draw_letter(font, character, Upright())[..., 0]
    rows, columns = (np.flatnonzero(image.max(axis=axis) > 127) for axis in (1, 0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == pytest.approx(20, abs=1)
    for places in (rows, columns):
        assert (places[0] + places[-1]) / 2 == pytest.approx(13.5, abs=0.5)


def test_a_pose_is_a_function_of_the_random_numbers_within_the_documented_range(font):
    first, again, other = (
        letters.draw_letter(font, "I", np.random.default_rng(seed))[..., 0] for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    centres = []
    for seed in range(40):
        image = letters.draw_letter(font, "I", np.random.default_rng(seed))[..., 0].astype(float)
        y, x = np.indices(image.shape) - 13.5
        mass = image.sum()
        mean_x, mean_y = (x * image).sum() / mass, (y * image).sum() / mass
        centres.append((mean_x, mean_y))
        # The direction of the stroke: turned by up to 30 degrees, and sheared by up to 0.3 (17).
        slope = ((x - mean_x) * (y - mean_y) * image).sum() / ((y - mean_y) ** 2 * image).sum()
        assert abs(np.rad2deg(np.arctan(slope))) < 48
    assert np.abs(centres).max() == pytest.approx(2, abs=0.2)


def test_a_second_capital_is_drawn_instead_of_the_lower_case_l(monkeypatch):
    monkeypatch.setattr(letters, "draw_letter", lambda _, character, rng: (character, rng.random()))
    path = MATPLOTLIB_FONTS / "DejaVuSans.ttf"
    drawn = dict(letters.Letters._generate_examples(None, [path]))
    assert len(drawn) == 52
    assert all(
        example["label"] == ord(example["image"][0].upper()) - ord("A")
        for example in drawn.values()
    )
    small, capital = drawn["DejaVuSans l"], drawn["DejaVuSans L"]
    assert small["image"][0] == capital["image"][0] == "L"
    assert small["image"][1] != capital["image"][1]  # another pose


def test_no_family_is_in_both_splits():
    names = [path.stem for path in MATPLOTLIB_FONTS.glob("*.ttf")] + ["Lato-Black", "Aller_Bd"]
    train, test = (
        {name for name in names if name.startswith(families)}
        for families in (letters.TRAIN_FAMILIES, letters.TEST_FAMILIES)
    )
    assert not train & test
    assert {"Lato-Black", "STIXGeneral", "cmr10"} <= train
    assert {"Aller_Bd", "DejaVuSans"} <= test
    assert not {"STIXNonUni", "cmsy10", "cmex10", "LastResortHE-Regular"} & (train | test)


def test_without_the_fonts_a_sentence_has_the_command_to_install_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "trdg", None)
    with pytest.raises(InputError, match=r"fonts of trdg: pip install --no-deps trdg==1\.8\.0"):
        letters.font_files()


def test_another_number_of_fonts_is_refused(install_trdg, tmp_path):
    install_trdg(3, 21)
    builder = letters.Letters(file_format="array_record", data_dir=tmp_path / "data")
    with pytest.raises(
        InputError, match=r"13 fonts to train on and 33 to test, expected the 89 and"
    ):
        builder.download_and_prepare()
