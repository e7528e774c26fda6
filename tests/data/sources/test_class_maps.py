import dataclasses

import numpy as np
import pytest

from convit_jax.data import align_classes, occurring_classes, restrict_to_classes
from convit_jax.errors import InputError


@pytest.fixture
def folder(open_folder):
    return open_folder(n01440764=3, goldfish=2, n01491361=4)


def labels(source):
    return [source[i][1] for i in range(len(source))]


MODEL_CLASSES = ("n01440764", "n01443537", "n01484850", "n01491361")


def test_a_subset_of_a_models_classes_gets_the_models_labels(folder):
    """WordNet ids and names both match: n01443537 is the goldfish."""
    aligned, class_subset = align_classes(folder, MODEL_CLASSES, 4)
    assert aligned.class_names == MODEL_CLASSES
    assert class_subset == (0, 1, 3)
    assert labels(aligned) == [1] * 2 + [0] * 3 + [3] * 4
    assert occurring_classes(aligned) == (0, 1, 3)
    assert labels(restrict_to_classes(aligned, (0, 3))) == [0] * 3 + [3] * 4


def test_all_classes_in_another_order_are_relabelled(folder):
    class_names = tuple(reversed(folder.class_names))
    aligned, class_subset = align_classes(folder, class_names, 3)
    assert class_subset is None
    assert labels(aligned) == [2] * 2 + [1] * 3 + [0] * 4


def test_identical_or_unnamed_classes_leave_the_source_unchanged(folder):
    assert align_classes(folder, folder.class_names, 3) == (folder, None)
    assert align_classes(folder, None, 3) == (folder, None)


@pytest.mark.parametrize(
    ("class_names", "num_classes", "message"),
    [
        (None, 4, "has 3 classes, the weights have 4 without names: expected data with the same"),
        (("n01440764", "n01491361"), 2, "classes that the weights lack: goldfish; the weights"),
    ],
)
def test_classes_that_do_not_match_are_refused(folder, class_names, num_classes, message):
    with pytest.raises(InputError, match=message):
        align_classes(folder, class_names, num_classes)


def test_a_label_map_and_indices_combine(folder):
    aligned, _ = align_classes(folder, MODEL_CLASSES, 4)
    part = dataclasses.replace(aligned, indices=np.array([1, 2, 8]))
    assert labels(part) == [1, 0, 3]
    assert labels(restrict_to_classes(part, (0,))) == [0]
