import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow_datasets as tfds

from convit_jax.data import (
    describe_classes,
    evenly,
    hold_out,
    occurring_classes,
    only_classes,
    open_source,
    spread_out,
    subset,
)
from convit_jax.data.images.decoding import decode
from convit_jax.data.sources import subsets
from convit_jax.data.sources.source import Source
from convit_jax.errors import InputError


@pytest.fixture
def folder(tmp_path):
    """Three classes of 10, 7 and 20 files."""
    for class_name, count in {"a": 10, "b": 7, "c": 20}.items():
        (tmp_path / class_name).mkdir()
        for i in range(count):
            (tmp_path / class_name / f"{i:02d}.jpg").write_bytes(f"{class_name}{i}".encode())
    return open_source(f"folder:{tmp_path}")


def take(source, fraction=1.0, choice="first", classes=0, seed=0):
    return subset(source, fraction=fraction, choice=choice, classes=classes, seed=seed)


def names(source):
    return [source[i][0].decode() for i in range(len(source))]


def test_the_first_int_n_f_of_each_class_by_file_name(folder):
    part = take(folder, 0.35)
    assert names(part) == ["a0", "a1", "a2", "b0", "b1", *(f"c{i}" for i in range(7))]
    assert part.class_names == ("a", "b", "c")
    assert describe_classes(part) == "12 examples, 2 to 7 of each of 3 classes"


def test_everything_is_the_source_itself(folder):
    assert take(folder) is folder


def test_a_random_choice_is_a_function_of_the_seed(folder):
    one, again, other = (names(take(folder, 0.5, "random", seed=s)) for s in (1, 1, 2))
    assert one == again != other
    assert [sum(name.startswith(c) for name in one) for c in "abc"] == [5, 3, 10]
    assert one != names(take(folder, 0.5))


def test_the_first_classes(folder):
    part = take(folder, classes=2)
    assert part.class_names == ("a", "b")
    assert len(part) == 17
    assert {part[i][1] for i in range(17)} == {0, 1}
    assert len(take(folder, 0.5, classes=2)) == 8


class Numbered(tfds.core.GeneratorBasedBuilder):
    """Twelve images of two classes, whose file names say which are the first."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="png"),
            "label": tfds.features.ClassLabel(names=["even", "odd"]),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(12):
            image = np.full((4, 4, 3), 20 * i, np.uint8)
            yield f"key {i}", {"image": image, "label": i % 2, "file_name": f"{90 - i}.png"}


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_the_first_of_a_tfds_dataset_are_the_first_by_file_name(file_format, tmp_path):
    """TFDS keeps examples in an order of its own; that of the names is the released code's."""
    Numbered(data_dir=tmp_path, file_format=file_format).download_and_prepare()
    source = open_source(f"tfds:numbered:train:{tmp_path}")
    part = take(source, 0.5)

    def numbers(source):
        """The number in each example's file name, by its shade."""
        return [90 - int(decode(source[i][0], 3)[0, 0, 0]) // 20 for i in range(len(source))]

    assert sorted(numbers(source)) == list(range(79, 91)) != numbers(source)
    first = range(79, 85)  # three of either class
    assert numbers(part) == [number for number in numbers(source) if number in first]
    again = take(open_source(f"tfds:numbered:train:{tmp_path}"), 0.5)  # by the kept labels
    assert np.array_equal(again.chosen, part.chosen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 0.13}, "leaves none of the 7 examples of class 'b'.*expected at least 0.14"),
        ({"classes": 5}, "config.data.classes=5: folder:.* has only 3"),
    ],
)
def test_what_leaves_a_class_empty_is_told_in_a_sentence(folder, options, message):
    with pytest.raises(InputError, match=message):
        take(folder, **options)


def test_a_share_of_each_class_is_held_out(folder):
    rest, held = hold_out(folder, 0.2, seed=3)
    assert describe_classes(held) == "7 examples, 1 to 4 of each of 3 classes"
    assert sorted(names(rest) + names(held)) == sorted(names(folder))
    assert names(hold_out(folder, 0.2, seed=3)[1]) == names(held)
    assert names(hold_out(folder, 0.2, seed=4)[1]) != names(held)
    # Of what is left a fraction can be taken, as of any source.
    part = take(rest, 0.5)
    assert not set(names(part)) & set(names(held))
    assert describe_classes(part) == "15 examples, 3 to 8 of each of 3 classes"


def test_a_class_too_small_to_hold_out_is_told_in_a_sentence(folder):
    with pytest.raises(InputError, match=r"holdout=0.95 leaves none of the 10 examples .*'a'"):
        hold_out(folder, 0.95, seed=0)


class Labelled:
    """Examples of which the labels alone are known."""

    def __init__(self, labels, label_shape=()):
        self.labels, self.label_shape = np.array(labels), label_shape

    def __len__(self):
        return len(self.labels)


@pytest.fixture
def labelled(monkeypatch):
    """A function: a source of examples with such labels, by name in the reverse of their order."""
    monkeypatch.setattr(
        subsets,
        "_labels_and_order",
        lambda source: (source.examples.labels, np.arange(len(source.examples))[::-1]),
    )

    def make(labels, class_names=("a", "b", "c"), label_shape=(), **options):
        options = {name: np.array(value) for name, value in options.items()}
        return Source("labelled", Labelled(labels, label_shape), class_names, **options)

    return make


def test_as_many_classes_as_there_are_is_all(folder):
    assert take(folder, classes=3) is folder
    assert len(take(folder, 0.5, classes=3)) == 5 + 3 + 10


def test_labels_that_are_none_of_the_classes_count_in_none(labelled):
    source = labelled([0, -1, 1, 2, 3, 99, 0, -7])
    assert describe_classes(source) == "4 examples, 1 to 2 of each of 3 classes"
    assert occurring_classes(source) == (0, 1, 2)


def test_labels_are_those_of_the_map(labelled):
    """The dataset's four classes are three here, the last of which no example has."""
    source = labelled([3, 0, 1, 2, 2, 4, -1], label_map=[1, 0, 1, 0])
    assert occurring_classes(source) == (0, 1)
    assert only_classes(source, (0,)).chosen.tolist() == [0, 2]
    assert only_classes(source, (1,)).chosen.tolist() == [1, 3, 4]
    assert only_classes(source, (1, 0)).chosen.tolist() == [0, 1, 2, 3, 4]
    assert describe_classes(source) == "5 examples, 0 to 3 of each of 3 classes"
    part = dataclasses.replace(source, chosen=np.array([1, 4, 5]))
    assert only_classes(part, (0, 1)).chosen.tolist() == [1, 4]
    assert occurring_classes(part) == (1,)


def test_the_first_by_name_are_given_in_their_old_order(labelled):
    source = labelled([0, 1, 0, 1, 0, 1, 2, 2])
    assert take(source, 0.5).chosen.tolist() == [4, 5, 7]
    assert take(source, 0.67).chosen.tolist() == [2, 3, 4, 5, 7]


def test_of_a_class_of_one_nothing_can_be_held_out(labelled):
    with pytest.raises(InputError, match="none of the 1 examples of class 'c'"):
        hold_out(labelled([0, 1, 0, 1, 0, 1, 2]), 0.01, seed=0)
    rest, held = hold_out(labelled([0, 1, 0, 1, 0, 1, 2, 2]), 0.01, seed=0)
    assert (len(rest), len(held)) == (5, 3)  # one of each
    for part in hold_out(labelled([2] * 10 + [1] * 10 + [0] * 10), 0.3, seed=0):
        assert part.chosen.tolist() == sorted(part.chosen)


def test_a_class_without_examples_is_named(labelled):
    with pytest.raises(InputError, match=r"none of the 0 examples of class 'b'.* at least nan"):
        take(labelled([0, 0, 2, 2]), 0.5)


def test_images_of_several_labels_have_no_share_of_each_class(labelled):
    with pytest.raises(InputError, match="labelled has several labels an image, expected one"):
        describe_classes(labelled([0, 1, 2], label_shape=(3,)))


@pytest.mark.parametrize("seed", [0, 5, -1, 2**63 + 3, 2**64 - 1])
def test_a_random_order_is_that_of_seed_and_class(labelled, seed):
    """Seeds are whole numbers of 64 bits, with or without a sign."""
    source = labelled([0] * 20 + [1] * 20, class_names=("a", "b"))
    chosen = []
    for label in (0, 1):
        members = np.arange(40)[::-1][20 * (1 - label) : 20 * (2 - label)]
        rng = np.random.default_rng((seed % 2**64, label))
        chosen += rng.permutation(members)[:6].tolist()
    assert take(source, 0.3, "random", seed=seed).chosen.tolist() == sorted(chosen)


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [(10, 5, [0, 2, 4, 6, 8]), (3, 7, [0, 1, 2]), (7, 3, [0, 2, 4]), (5, 1, [0]), (4, 0, [])],
)
def test_even_distances(total, count, expected):
    assert evenly(total, count).tolist() == expected


def test_some_of_a_source_at_even_distances(labelled):
    source = labelled(range(10))
    assert spread_out(source, 10) is source
    assert spread_out(source, 3).chosen.tolist() == [0, 3, 6]
    part = dataclasses.replace(source, chosen=np.array([2, 3, 5, 7]))
    assert spread_out(part, 2).chosen.tolist() == [2, 5]
    assert spread_out(part, 4) is part


class Named:
    """Examples in records, of which names and labels alone are known; None cannot be read."""

    records = SimpleNamespace(spans=())

    def __init__(self, *names_and_labels):
        self.found = names_and_labels

    def __len__(self):
        return len(self.found)

    def describe(self, index):
        return f"record {index}"

    def name_and_label(self, index):
        if self.found[index] is None:
            raise ValueError("garbled")
        return self.found[index]


def test_without_names_examples_stay_in_their_order():
    labels, by_name = subsets._read_labels(Named(*(("", i % 3) for i in range(300))))
    assert labels.tolist() == [i % 3 for i in range(300)]
    assert by_name.tolist() == list(range(300))


def test_a_record_that_cannot_be_read_is_named_and_in_no_class(caplog):
    labels, by_name = subsets._read_labels(Named(("b", 1), None, ("WW", 2), ("a", 0)))
    assert labels.tolist() == [1, -1, 2, 0]
    assert by_name.tolist() == [1, 2, 3, 0]  # without a name, first
    assert "record 1 cannot be read: garbled: it is in no class" in caplog.text


@pytest.mark.parametrize(
    ("labels", "by_name"),
    [([1, 0], [1, 0, 2]), ([1, 0, 2, 2], [1, 0, 2]), ([1, 0, 2], [1, 0, 0]), ([1, 0, 2], [0, 1])],
)
def test_kept_labels_that_cannot_be_are_read_again(labels, by_name, monkeypatch):
    """And those that can be are taken, in whatever order the names are."""
    source = SimpleNamespace(name="x", examples=Named(("c", 7), ("a", 8), ("b", 9)))

    def keep(labels, by_name):
        kept = {"labels": np.array(labels), "by_name": np.array(by_name)}
        monkeypatch.setattr(
            subsets, "kept_arrays", lambda cache, arrays, is_sound: kept if is_sound(kept) else None
        )

    keep(labels, by_name)
    found = subsets._labels_and_order(source)
    assert [part.tolist() for part in found] == [[7, 8, 9], [1, 2, 0]]
    keep([3, 4, 5], [2, 0, 1])
    found = subsets._labels_and_order(source)
    assert [part.tolist() for part in found] == [[3, 4, 5], [2, 0, 1]]


def test_a_subset_of_a_tfds_dataset_is_found_once_and_kept(digits, monkeypatch):
    part = take(digits, 0.1)
    labels = np.array([part[i][1] for i in range(len(part))])
    whole = np.array([digits[i][1] for i in range(len(digits))])
    assert list(np.bincount(labels)) == [int(n * 0.1) for n in np.bincount(whole)]
    monkeypatch.setattr(type(digits.examples), "name_and_label", None)  # it reads no more
    assert np.array_equal(take(digits, 0.1).chosen, part.chosen)
