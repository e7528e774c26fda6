import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from convit_jax.data import open_source
from convit_jax.data.digits import TRAIN_IMAGES
from convit_jax.errors import InputError


def test_digits_are_those_of_scikit_learn_each_once(digits):
    test = open_source("digits:test")
    assert (len(digits), len(test)) == (1400, 397)
    assert digits.class_names == tuple("0123456789")

    original = load_digits()
    expected = np.round(original.images * 255 / 16).astype(np.uint8)
    for source, split in ((digits, slice(TRAIN_IMAGES)), (test, slice(TRAIN_IMAGES, None))):
        ours = sorted(
            (label, Image.open(io.BytesIO(encoded)).tobytes())
            for encoded, label in (source[i] for i in range(len(source)))
        )
        theirs = zip(original.target[split], expected[split], strict=True)
        assert ours == sorted((int(label), image.tobytes()) for label, image in theirs)


def test_digits_are_written_as_array_record_once(digits, tfds_data_dir):
    files = list(tfds_data_dir.glob("digits/1.0.0/*array_record*"))
    assert len(files) == 2
    written = [file.stat().st_mtime_ns for file in files]
    open_source("digits:train")
    assert [file.stat().st_mtime_ns for file in files] == written


def test_any_prepared_dataset_is_opened_by_its_tfds_name(digits, tfds_data_dir):
    again = open_source(f"tfds:digits:train[:10]:{tfds_data_dir}")
    assert len(again) == 10
    assert again[3] == digits[3]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit:train", "unknown kind 'digit', expected digits:train"),
        ("digits", "expected digits:train|test"),
        ("digits:tst", "no split 'tst', did you mean 'test'"),
        ("tfds:imagenet2012", "expected tfds:NAME:SPLIT"),
        ("tfds:no_such_dataset:train", "TFDS knows no dataset 'no_such_dataset'"),
        ("tfds:mnist:train", "nothing is prepared in .*tfds build mnist"),
    ],
)
def test_data_that_are_not_there_are_told_in_a_sentence(name, message, digits):
    with pytest.raises(InputError, match=message):
        open_source(name)
