"""Folders of images as people have them (D3, D5, D7)."""

import pathlib
import unicodedata

import pytest

from convit_jax.config.files import make_config
from convit_jax.data import open_source
from convit_jax.errors import InputError
from convit_jax.training import open_training_data
from tests.field.builders import folder

COMPOSED, TAKEN_APART = (unicodedata.normalize(form, "Café") for form in ("NFC", "NFD"))


@pytest.fixture
def finetune(repository, workdir):
    """A function of a data name: what configs/finetune.py makes of it."""

    def make(data, more=""):
        argument = f"data={data},weights={workdir}{more}"
        return make_config(f"{repository}/configs/finetune.py:{argument}").data

    return make


@pytest.mark.parametrize(
    ("parts", "evaluates"),
    [
        (("train", "valid"), "valid"),
        (("train", "val", "test"), "val"),
        (("train", "test", "validation"), "validation"),
        (("Train", "Valid", "Test"), "Valid"),
        (("TRAIN", "TEST"), "TEST"),
        (("training", "testing"), "testing"),
    ],
)
def test_a_folder_of_parts_is_fine_tuned_on_as_they_say(tmp_path, finetune, parts, evaluates):
    for part in parts:
        folder(tmp_path / part, ("cat", "dog"))
    data = finetune(f"folder:{tmp_path}")
    assert data.train == f"folder:{tmp_path}/{parts[0]}"
    assert (data.eval, data.holdout) == (f"folder:{tmp_path}/{evaluates}", 0.0)


def test_a_folder_with_a_part_to_train_on_alone_has_a_share_held_out(tmp_path, finetune):
    folder(tmp_path / "train", ("cat", "dog"))
    data = finetune(f"folder:{tmp_path}")
    assert (data.train, data.eval, data.holdout) == (f"folder:{tmp_path}/train", "", 0.1)


def test_parts_beside_notes_without_images_are_parts(tmp_path, finetune):
    for part in ("train", "val"):
        folder(tmp_path / part, ("cat", "dog"))
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "boxes.json").write_text("{}")
    assert finetune(f"folder:{tmp_path}").eval == f"folder:{tmp_path}/val"
    with pytest.raises(InputError, match=r"directories \(train, val\) are parts of a dataset"):
        open_source(f"folder:{tmp_path}")


@pytest.mark.parametrize("parts", [("train", "valid"), ("Train", "Test"), ("train",), ("test",)])
def test_a_folder_of_parts_is_asked_about_and_never_trained_as_classes(tmp_path, parts):
    for part in parts:
        folder(tmp_path / part, ("cat", "dog"))
    with pytest.raises(InputError, match="are parts of a dataset, not classes") as error:
        open_source(f"folder:{tmp_path}")
    for part in parts:
        assert f"folder:{tmp_path}/{part}" in str(error.value)


def test_a_class_may_be_called_test(tmp_path, finetune):
    name = folder(tmp_path, ("exam", "test", "train"))
    assert open_source(name).class_names == ("exam", "test", "train")
    assert finetune(name).train == name


def test_a_folder_in_the_home_directory(tmp_path, monkeypatch, finetune):
    monkeypatch.setenv("HOME", str(tmp_path))
    for part in ("train", "valid"):
        folder(tmp_path / "pets" / part, ("cat", "dog"))
    source = open_source("folder:~/pets/train")
    assert len(source) == 8
    assert source[0][1] == 0
    assert finetune("folder:~/pets").eval == f"folder:{tmp_path}/pets/valid"


def test_a_name_with_a_comma(tmp_path, finetune):
    name = folder(tmp_path / "a,b", ("cat", "dog"))
    assert finetune(name).train == name
    assert finetune(name, ",probe").train == name
    other = folder(tmp_path / "x=1,y=2", ("cat", "dog"))
    assert finetune(name, f",eval={other}").eval == other


def make_data(make_config, train, evaluate):
    data = {"train": train, "eval": evaluate, "image_size": (8,), "mean": (0.3,), "std": (0.4,)}
    return make_config(data=data)


@pytest.mark.parametrize(
    ("train", "evaluate", "expected"),
    [
        (("ant", "bee", "cat"), ("ant", "cat"), "only the latter has bee"),
        (("ant", "cat"), ("ant", "bee", "cat"), "only the former has bee"),
        (("ant", "bee"), ("ant", "Bee"), "only the former has Bee, only the latter has bee"),
        (
            tuple(f"c{i}" for i in range(10)),
            ("c0",),
            "only the latter has c1, c2, c3, c4, c5 and 4 more",
        ),
    ],
)
def test_validation_has_other_classes_than_training(
    tmp_path, make_config, train, evaluate, expected
):
    names = folder(tmp_path / "a", train), folder(tmp_path / "b", evaluate)
    with pytest.raises(InputError, match=expected):
        open_training_data(make_data(make_config, *names))


def test_a_class_in_two_forms_of_unicode_is_one_class(tmp_path, make_config):
    # Sorted as written, the two forms of "Café" stand on either side of "Cafz".
    train = folder(tmp_path / "a", (COMPOSED, "Cafz", "Tee"))
    evaluation = folder(tmp_path / "b", (TAKEN_APART, "Cafz", "Tee"))
    examples, eval_examples = open_training_data(make_data(make_config, train, evaluation))
    assert examples.class_names == eval_examples.class_names
    for source, name in ((examples, COMPOSED), (eval_examples, TAKEN_APART)):
        for index in range(len(source)):
            shown = pathlib.Path(source.describe(index)).parent.name == name
            assert (source[index][1] == source.class_names.index(COMPOSED)) == shown


def test_one_class_in_both_forms_of_unicode_is_told(tmp_path):
    name = folder(tmp_path, (COMPOSED, TAKEN_APART))
    with pytest.raises(InputError, match="two directories are called 'Café'"):
        open_source(name)


def test_the_same_classes_in_another_order_are_aligned_by_name(tmp_path, digits, make_config):
    """Labels of TFDS data are in the order of its authors, those of a folder in the alphabet's."""
    from convit_jax.data import with_classes_of

    train = open_source(folder(tmp_path / "a", ("ant", "bee", "cat")))
    other = open_source(folder(tmp_path / "b", ("cat", "ant", "bee")))
    shuffled = type(other)(other.name, other.examples, ("cat", "ant", "bee"))
    aligned = with_classes_of(shuffled, train)
    assert aligned.class_names == ("ant", "bee", "cat")
    assert [aligned[i][1] for i in (0, 4, 8)] == [2, 0, 1]
