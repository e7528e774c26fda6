"""Folders of images as users have them."""

import pathlib
import unicodedata

import pytest

from convit_jax.config.files import make_config
from convit_jax.data import align_to_training_classes, open_source
from convit_jax.errors import InputError
from convit_jax.training import open_training_data
from tests.field.builders import folder

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "Café") for form in ("NFC", "NFD"))


@pytest.fixture
def finetune(repository, workdir):
    """A function of a data name: the data config that configs/finetune.py derives from it."""

    def make(data, other_arguments=""):
        argument = f"data={data},weights={workdir}{other_arguments}"
        return make_config(f"{repository}/configs/finetune.py:{argument}").data

    return make


@pytest.mark.parametrize(
    ("splits", "eval_split"),
    [
        (("train", "valid"), "valid"),
        (("train", "val", "test"), "val"),
        (("train", "test", "validation"), "validation"),
        (("Train", "Valid", "Test"), "Valid"),
        (("TRAIN", "TEST"), "TEST"),
        (("training", "testing"), "testing"),
    ],
)
def test_finetuning_uses_the_splits_of_a_folder(tmp_path, finetune, splits, eval_split):
    for split in splits:
        folder(tmp_path / split, ("cat", "dog"))
    data = finetune(f"folder:{tmp_path}")
    assert data.train == f"folder:{tmp_path}/{splits[0]}"
    assert (data.eval, data.holdout) == (f"folder:{tmp_path}/{eval_split}", 0.0)


def test_a_folder_with_only_a_training_split_has_a_share_held_out(tmp_path, finetune):
    folder(tmp_path / "train", ("cat", "dog"))
    data = finetune(f"folder:{tmp_path}")
    assert (data.train, data.eval, data.holdout) == (f"folder:{tmp_path}/train", "", 0.1)


def test_splits_are_detected_beside_directories_without_images(tmp_path, finetune):
    for split in ("train", "val"):
        folder(tmp_path / split, ("cat", "dog"))
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "boxes.json").write_text("{}")
    assert finetune(f"folder:{tmp_path}").eval == f"folder:{tmp_path}/val"
    with pytest.raises(InputError, match=r"directories \(train, val\) are splits of a dataset"):
        open_source(f"folder:{tmp_path}")


@pytest.mark.parametrize("splits", [("train", "valid"), ("Train", "Test"), ("train",), ("test",)])
def test_splits_are_not_opened_as_classes(tmp_path, splits):
    for split in splits:
        folder(tmp_path / split, ("cat", "dog"))
    with pytest.raises(InputError, match="are splits of a dataset, not classes") as error:
        open_source(f"folder:{tmp_path}")
    for split in splits:
        assert f"folder:{tmp_path}/{split}" in str(error.value)


def test_a_class_may_have_the_name_of_a_split(tmp_path, finetune):
    name = folder(tmp_path, ("exam", "test", "train"))
    assert open_source(name).class_names == ("exam", "test", "train")
    assert finetune(name).train == name


def test_a_folder_in_the_home_directory(tmp_path, monkeypatch, finetune):
    monkeypatch.setenv("HOME", str(tmp_path))
    for split in ("train", "valid"):
        folder(tmp_path / "pets" / split, ("cat", "dog"))
    source = open_source("folder:~/pets/train")
    assert len(source) == 8
    assert source[0][1] == 0
    assert finetune("folder:~/pets").eval == f"folder:{tmp_path}/pets/valid"


def test_a_path_with_a_comma(tmp_path, finetune):
    name = folder(tmp_path / "a,b", ("cat", "dog"))
    assert finetune(name).train == name
    assert finetune(name, ",probe").train == name
    other = folder(tmp_path / "x=1,y=2", ("cat", "dog"))
    assert finetune(name, f",eval={other}").eval == other


def data_config(make_config, train, evaluation):
    data = {"train": train, "eval": evaluation, "image_size": (8,), "mean": (0.3,), "std": (0.4,)}
    return make_config(data=data)


@pytest.mark.parametrize(
    ("train", "evaluation", "expected"),
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
def test_other_classes_in_validation_than_in_training_are_refused(
    tmp_path, make_config, train, evaluation, expected
):
    names = folder(tmp_path / "a", train), folder(tmp_path / "b", evaluation)
    with pytest.raises(InputError, match=expected):
        open_training_data(data_config(make_config, *names))


def test_a_class_name_in_two_unicode_forms_is_one_class(tmp_path, make_config):
    # In code point order, the two forms of "Café" are on either side of "Cafz".
    train = folder(tmp_path / "a", (COMPOSED, "Cafz", "Tee"))
    evaluation = folder(tmp_path / "b", (DECOMPOSED, "Cafz", "Tee"))
    examples, eval_examples = open_training_data(data_config(make_config, train, evaluation))
    assert examples.class_names == eval_examples.class_names
    for source, name in ((examples, COMPOSED), (eval_examples, DECOMPOSED)):
        for index in range(len(source)):
            is_cafe = pathlib.Path(source.describe(index)).parent.name == name
            assert (source[index][1] == source.class_names.index(COMPOSED)) == is_cafe


def test_two_directories_of_one_class_name_are_refused(tmp_path):
    name = folder(tmp_path, (COMPOSED, DECOMPOSED))
    with pytest.raises(InputError, match="two directories are called 'Café'"):
        open_source(name)


def test_the_same_classes_in_another_order_are_aligned_by_name(tmp_path):
    """TFDS class lists have any order, those of folders are alphabetical."""
    train = open_source(folder(tmp_path / "a", ("ant", "bee", "cat")))
    other = open_source(folder(tmp_path / "b", ("cat", "ant", "bee")))
    shuffled = type(other)(other.name, other.examples, ("cat", "ant", "bee"))
    aligned = align_to_training_classes(shuffled, train)
    assert aligned.class_names == ("ant", "bee", "cat")
    assert [aligned[i][1] for i in (0, 4, 8)] == [2, 0, 1]
