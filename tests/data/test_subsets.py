import numpy as np
import pytest
import tensorflow_datasets as tfds

from convit_jax.data import describe_classes, hold_out, open_source, subset
from convit_jax.data.decoding import decode
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


def test_a_subset_of_a_tfds_dataset_is_found_once_and_kept(digits, monkeypatch):
    part = take(digits, 0.1)
    labels = np.array([part[i][1] for i in range(len(part))])
    whole = np.array([digits[i][1] for i in range(len(digits))])
    assert list(np.bincount(labels)) == [int(n * 0.1) for n in np.bincount(whole)]
    monkeypatch.setattr(type(digits.examples), "name_and_label", None)  # it reads no more
    assert np.array_equal(take(digits, 0.1).chosen, part.chosen)


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
