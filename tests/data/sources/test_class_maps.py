import dataclasses

import numpy as np
import pytest

from convit_jax.data import align_classes, occurring_classes, only_classes, open_source
from convit_jax.errors import InputError


@pytest.fixture
def folder(tmp_path):
    """Three classes of 3, 2 and 4 files."""
    for class_name, count in {"n01440764": 3, "goldfish": 2, "n01491361": 4}.items():
        (tmp_path / class_name).mkdir()
        for i in range(count):
            (tmp_path / class_name / f"{i}.jpg").write_bytes(f"{class_name}{i}".encode())
    return open_source(f"folder:{tmp_path}")


def labels(source):
    return [source[i][1] for i in range(len(source))]


MODELS = ("n01440764", "n01443537", "n01484850", "n01491361")


def test_some_of_a_models_classes_get_its_labels(folder):
    """Ids and names are both understood: n01443537 is the goldfish."""
    aligned, among = align_classes(folder, MODELS, 4)
    assert aligned.class_names == MODELS
    assert among == (0, 1, 3)
    assert labels(aligned) == [1] * 2 + [0] * 3 + [3] * 4
    assert occurring_classes(aligned) == (0, 1, 3)
    assert labels(only_classes(aligned, (0, 3))) == [0] * 3 + [3] * 4


def test_all_classes_in_another_order_are_told_apart_among_all(folder):
    names = tuple(reversed(folder.class_names))
    aligned, among = align_classes(folder, names, 3)
    assert among is None
    assert labels(aligned) == [2] * 2 + [1] * 3 + [0] * 4


def test_the_same_classes_and_unnamed_ones_stay(folder):
    assert align_classes(folder, folder.class_names, 3) == (folder, None)
    assert align_classes(folder, None, 3) == (folder, None)


@pytest.mark.parametrize(
    ("names", "count", "told"),
    [
        (None, 4, "has 3 classes, the weights have 4, whose names they do not say"),
        (("n01440764", "n01491361"), 2, "classes that the weights have not: goldfish; those of"),
    ],
)
def test_other_classes_are_told_in_a_sentence(folder, names, count, told):
    with pytest.raises(InputError, match=told):
        align_classes(folder, names, count)


def test_a_map_and_a_choice_go_together(folder):
    aligned, _ = align_classes(folder, MODELS, 4)
    part = dataclasses.replace(aligned, chosen=np.array([1, 2, 8]))
    assert labels(part) == [1, 0, 3]
    assert labels(only_classes(part, (0,))) == [0]
