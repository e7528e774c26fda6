import pathlib

import numpy as np
import pytest
from tensorflow_datasets.datasets.imagenet2012 import imagenet_common

from convit_jax.data.sources import imagenet


def test_ids_and_their_order_are_those_of_tfds():
    ids = imagenet.class_ids()
    assert list(ids) == pathlib.Path(imagenet_common.label_names_file()).read_text().split()
    assert imagenet.is_imagenet(ids)
    assert not imagenet.is_imagenet(ids[::-1])


@pytest.mark.parametrize(
    ("label", "name"),
    [
        (0, "tench"),
        (1, "goldfish"),
        (207, "golden retriever"),
        (281, "tabby"),
        (999, "toilet tissue"),
    ],
)
def test_readable_names_are_the_usual_ones(label, name):
    assert imagenet.readable_names(imagenet.class_ids())[label] == name


def test_readable_names_are_unique():
    names = imagenet.readable_names(imagenet.class_ids())
    assert len(set(names)) == 1000
    cranes = [name for name in names if name.startswith("crane")]
    assert cranes == ["crane (n02012849)", "crane (n03126707)"]


def test_other_names_are_unchanged():
    assert imagenet.readable_names(("cat", "n01440764", "7")) == ["cat", "tench", "7"]
    assert np.array_equal(imagenet.readable_names(()), [])
