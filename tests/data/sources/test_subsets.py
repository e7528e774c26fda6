import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow_datasets as tfds

from convit_jax.data import (
    describe_classes,
    evenly_spaced,
    evenly_spaced_subset,
    hold_out,
    occurring_classes,
    open_source,
    restrict_to_classes,
    subset,
)
from convit_jax.data.images.decoding import decode
from convit_jax.data.sources import subsets
from convit_jax.data.sources.source import Source
from convit_jax.errors import InputError
from tests.field.builders import prepare_dataset, solid_image


@pytest.fixture
def folder(open_folder):
    return open_folder(a=10, b=7, c=20)


def make_subset(source, fraction=1.0, choice="first", classes=0, seed=0):
    return subset(source, fraction=fraction, choice=choice, classes=classes, seed=seed)


def names(source):
    return [source[i][0].decode() for i in range(len(source))]


def test_a_fraction_takes_the_first_of_each_class_by_file_name(folder):
    part = make_subset(folder, 0.35)
    assert names(part) == ["a0", "a1", "a2", "b0", "b1", *(f"c{i}" for i in range(7))]
    assert part.class_names == ("a", "b", "c")
    assert describe_classes(part) == "12 examples, 2 to 7 of each of 3 classes"


def test_a_subset_of_everything_is_the_source_itself(folder):
    assert make_subset(folder) is folder


def test_a_random_choice_is_a_function_of_the_seed(folder):
    first, again, other = (names(make_subset(folder, 0.5, "random", seed=s)) for s in (1, 1, 2))
    assert first == again != other
    assert [sum(name.startswith(c) for name in first) for c in "abc"] == [5, 3, 10]
    assert first != names(make_subset(folder, 0.5))


def test_a_number_of_classes_takes_the_first(folder):
    part = make_subset(folder, classes=2)
    assert part.class_names == ("a", "b")
    assert len(part) == 17
    assert {part[i][1] for i in range(17)} == {0, 1}
    assert len(make_subset(folder, 0.5, classes=2)) == 8


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_a_fraction_of_a_tfds_dataset_takes_the_first_by_file_name(file_format, tmp_path):
    """TFDS shuffles examples; the released code takes them in file name order."""
    # Twelve images of two classes, with file names in the reverse order.
    prepare_dataset(
        tmp_path,
        {"image": tfds.features.Image(encoding_format="png"), "file_name": tfds.features.Text(),
         "label": tfds.features.ClassLabel(names=["even", "odd"])},
        lambda i: {"image": solid_image(20 * i), "label": i % 2, "file_name": f"{90 - i}.png"},
        name="numbered", count=12, file_format=file_format,
    )  # fmt: skip
    source = open_source(f"tfds:numbered:train:{tmp_path}")
    part = make_subset(source, 0.5)

    def numbers(source):
        """Return the number in each example's file name, recovered from its shade."""
        return [90 - int(decode(source[i][0], 3)[0, 0, 0]) // 20 for i in range(len(source))]

    assert sorted(numbers(source)) == list(range(79, 91)) != numbers(source)
    first = range(79, 85)  # three of each class
    assert numbers(part) == [number for number in numbers(source) if number in first]
    again = make_subset(open_source(f"tfds:numbered:train:{tmp_path}"), 0.5)  # from cached labels
    assert np.array_equal(again.indices, part.indices)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 0.13}, "leaves none of the 7 examples of class 'b'.*expected at least 0.14"),
        ({"classes": 5}, "config.data.classes=5: folder:.* has only 3"),
    ],
)
def test_a_subset_without_examples_of_a_class_is_refused(folder, options, message):
    with pytest.raises(InputError, match=message):
        make_subset(folder, **options)


def test_a_share_of_each_class_is_held_out(folder):
    training, held_out = hold_out(folder, 0.2, seed=3)
    assert describe_classes(held_out) == "7 examples, 1 to 4 of each of 3 classes"
    assert sorted(names(training) + names(held_out)) == sorted(names(folder))
    assert names(hold_out(folder, 0.2, seed=3)[1]) == names(held_out)
    assert names(hold_out(folder, 0.2, seed=4)[1]) != names(held_out)
    # The training part can be subset like any source.
    part = make_subset(training, 0.5)
    assert not set(names(part)) & set(names(held_out))
    assert describe_classes(part) == "15 examples, 3 to 8 of each of 3 classes"


def test_holding_out_all_of_a_class_is_refused(folder):
    with pytest.raises(InputError, match=r"holdout=0.95 leaves none of the 10 examples .*'a'"):
        hold_out(folder, 0.95, seed=0)


class Labelled:
    """Fake examples with labels only."""

    def __init__(self, labels, label_shape=()):
        self.labels, self.label_shape = np.array(labels), label_shape

    def __len__(self):
        return len(self.labels)


@pytest.fixture
def labelled(monkeypatch):
    """A function of labels: a source of such examples, whose file names are in reverse order."""
    monkeypatch.setattr(
        subsets,
        "_labels_and_order",
        lambda source: (source.examples.labels, np.arange(len(source.examples))[::-1]),
    )

    def make(labels, class_names=("a", "b", "c"), label_shape=(), **options):
        options = {name: np.array(value) for name, value in options.items()}
        return Source("labelled", Labelled(labels, label_shape), class_names, **options)

    return make


def test_a_subset_of_all_classes_has_them_all(folder):
    assert make_subset(folder, classes=3) is folder
    assert len(make_subset(folder, 0.5, classes=3)) == 5 + 3 + 10


def test_examples_with_invalid_labels_are_in_no_class(labelled):
    source = labelled([0, -1, 1, 2, 3, 99, 0, -7])
    assert describe_classes(source) == "4 examples, 1 to 2 of each of 3 classes"
    assert occurring_classes(source) == (0, 1, 2)


def test_labels_are_mapped(labelled):
    """The dataset's four classes are mapped to three, the last of which has no examples."""
    source = labelled([3, 0, 1, 2, 2, 4, -1], label_map=[1, 0, 1, 0])
    assert occurring_classes(source) == (0, 1)
    assert restrict_to_classes(source, (0,)).indices.tolist() == [0, 2]
    assert restrict_to_classes(source, (1,)).indices.tolist() == [1, 3, 4]
    assert restrict_to_classes(source, (1, 0)).indices.tolist() == [0, 1, 2, 3, 4]
    assert describe_classes(source) == "5 examples, 0 to 3 of each of 3 classes"
    part = dataclasses.replace(source, indices=np.array([1, 4, 5]))
    assert restrict_to_classes(part, (0, 1)).indices.tolist() == [1, 4]
    assert occurring_classes(part) == (1,)


def test_the_first_by_name_stay_in_their_original_order(labelled):
    source = labelled([0, 1, 0, 1, 0, 1, 2, 2])
    assert make_subset(source, 0.5).indices.tolist() == [4, 5, 7]
    assert make_subset(source, 0.67).indices.tolist() == [2, 3, 4, 5, 7]


def test_a_class_with_one_example_cannot_be_held_out(labelled):
    with pytest.raises(InputError, match="none of the 1 examples of class 'c'"):
        hold_out(labelled([0, 1, 0, 1, 0, 1, 2]), 0.01, seed=0)
    training, held_out = hold_out(labelled([0, 1, 0, 1, 0, 1, 2, 2]), 0.01, seed=0)
    assert (len(training), len(held_out)) == (5, 3)  # one of each class is held out
    for part in hold_out(labelled([2] * 10 + [1] * 10 + [0] * 10), 0.3, seed=0):
        assert part.indices.tolist() == sorted(part.indices)


def test_a_class_without_examples_is_refused_by_name(labelled):
    with pytest.raises(InputError, match="has no example of class 'b', expected some of each"):
        make_subset(labelled([0, 0, 2, 2]), 0.5)


def test_multi_label_images_have_no_class_subsets(labelled):
    with pytest.raises(InputError, match="labelled has several labels per image, expected one"):
        describe_classes(labelled([0, 1, 2], label_shape=(3,)))


@pytest.mark.parametrize("seed", [0, 5, -1, 2**63 + 3, 2**64 - 1])
def test_a_random_order_depends_on_the_seed_and_class(labelled, seed):
    """Seeds are signed or unsigned 64-bit integers."""
    source = labelled([0] * 20 + [1] * 20, class_names=("a", "b"))
    expected = []
    for label in (0, 1):
        members = np.arange(40)[::-1][20 * (1 - label) : 20 * (2 - label)]
        rng = np.random.default_rng((seed % 2**64, label))
        expected += rng.permutation(members)[:6].tolist()
    assert make_subset(source, 0.3, "random", seed=seed).indices.tolist() == sorted(expected)


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [(10, 5, [0, 2, 4, 6, 8]), (3, 7, [0, 1, 2]), (7, 3, [0, 2, 4]), (5, 1, [0]), (4, 0, [])],
)
def test_evenly_spaced(total, count, expected):
    assert evenly_spaced(total, count).tolist() == expected


def test_evenly_spaced_subset(labelled):
    source = labelled(range(10))
    assert evenly_spaced_subset(source, 10) is source
    assert evenly_spaced_subset(source, 3).indices.tolist() == [0, 3, 6]
    part = dataclasses.replace(source, indices=np.array([2, 3, 5, 7]))
    assert evenly_spaced_subset(part, 2).indices.tolist() == [2, 5]
    assert evenly_spaced_subset(part, 4) is part


class NamedRecords:
    """Fake records with names and labels only; None stands for a record that cannot be read."""

    records = SimpleNamespace(spans=())

    def __init__(self, *names_and_labels):
        self.names_and_labels = names_and_labels

    def __len__(self):
        return len(self.names_and_labels)

    def describe(self, index):
        return f"record {index}"

    def name_and_label(self, index):
        if self.names_and_labels[index] is None:
            raise ValueError("garbled")
        return self.names_and_labels[index]


def test_examples_without_names_stay_in_their_original_order():
    labels, by_name = subsets._read_labels(NamedRecords(*(("", i % 3) for i in range(300))))
    assert labels.tolist() == [i % 3 for i in range(300)]
    assert by_name.tolist() == list(range(300))


def test_an_unreadable_record_is_logged_and_in_no_class(caplog):
    labels, by_name = subsets._read_labels(NamedRecords(("b", 1), None, ("WW", 2), ("a", 0)))
    assert labels.tolist() == [1, -1, 2, 0]
    assert by_name.tolist() == [1, 2, 3, 0]  # the empty name comes first
    assert "record 1 cannot be read: garbled: it is assigned to no class" in caplog.text


@pytest.mark.parametrize(
    ("labels", "by_name"),
    [([1, 0], [1, 0, 2]), ([1, 0, 2, 2], [1, 0, 2]), ([1, 0, 2], [1, 0, 0]), ([1, 0, 2], [0, 1])],
)
def test_invalid_cached_labels_are_read_again(labels, by_name, monkeypatch):
    """Valid ones are used, in any order of names."""
    source = SimpleNamespace(name="x", examples=NamedRecords(("c", 7), ("a", 8), ("b", 9)))

    def labels_and_order_with_cache(labels, by_name):
        cached = {"labels": np.array(labels), "by_name": np.array(by_name)}
        monkeypatch.setattr(
            subsets,
            "load_cached_arrays",
            lambda name, keys, is_valid: cached if is_valid(cached) else None,
        )
        return [array.tolist() for array in subsets._labels_and_order(source)]

    assert labels_and_order_with_cache(labels, by_name) == [[7, 8, 9], [1, 2, 0]]
    assert labels_and_order_with_cache([3, 4, 5], [2, 0, 1]) == [[3, 4, 5], [2, 0, 1]]


def test_the_labels_of_a_tfds_dataset_are_read_once_and_cached(digits, monkeypatch):
    part = make_subset(digits, 0.1)
    labels = np.array([part[i][1] for i in range(len(part))])
    all_labels = np.array([digits[i][1] for i in range(len(digits))])
    assert list(np.bincount(labels)) == [int(n * 0.1) for n in np.bincount(all_labels)]
    monkeypatch.setattr(type(digits.examples), "name_and_label", None)  # no further reads
    assert np.array_equal(make_subset(digits, 0.1).indices, part.indices)
