"""Prepared datasets as people name them, and as their authors laid them out (D1, D4)."""

import logging

import numpy as np
import pytest
import tensorflow_datasets as tfds

from convit_jax.config.files import make_config
from convit_jax.data import open_source
from convit_jax.data.images.decoding import decode
from convit_jax.data.sources import prepared as prepared_names
from convit_jax.errors import InputError, MachineError
from convit_jax.training import open_training_data
from tests.field.builders import label, pixels, prepared

F = tfds.features


def image():
    return F.Image(shape=(8, 8, 3), encoding_format="png")


def shade_and_label(source, index):
    encoded, which = source[index]
    return int(decode(encoded, 3)[0, 0, 0]), which


def pairs(source):
    return sorted(shade_and_label(source, index) for index in range(len(source)))


def test_cifar100_has_a_fine_and_a_coarse_label(tmp_path):
    prepared(
        tmp_path,
        {"id": F.Text(), "image": image(), "label": F.ClassLabel(num_classes=6),
         "coarse_label": F.ClassLabel(num_classes=2)},
        lambda i: {"id": str(i), "image": pixels(i), "label": label(i, 6), "coarse_label": i % 2},
        supervised=("image", "label"),
    )  # fmt: skip
    source = open_source(f"tfds:shapes:train:{tmp_path}")
    assert len(source.class_names) == 6
    assert pairs(source) == [(i, i) for i in range(6)]


def test_the_coarse_label_where_the_dataset_says_so(tmp_path):
    prepared(
        tmp_path,
        {"image": image(), "label": F.ClassLabel(num_classes=6),
         "coarse_label": F.ClassLabel(names=["even", "odd"])},
        lambda i: {"image": pixels(i), "label": label(i, 6), "coarse_label": i % 2},
        supervised=("image", "coarse_label"),
    )  # fmt: skip
    source = open_source(f"tfds:shapes:train:{tmp_path}")
    assert source.class_names == ("even", "odd")
    assert pairs(source) == [(i, i % 2) for i in range(6)]


def test_pets_have_two_labels_and_a_second_image(tmp_path):
    prepared(
        tmp_path,
        {"image": image(), "label": F.ClassLabel(num_classes=3), "species": F.ClassLabel(
            num_classes=2), "file_name": F.Text(), "segmentation_mask": F.Image(
            shape=(8, 8, 1), encoding_format="png")},
        lambda i: {"image": pixels(i), "label": label(i, 3), "species": i % 2,
                   "file_name": f"{i}.jpg", "segmentation_mask": pixels(200, 1)},
        supervised=("image", "label"),
    )  # fmt: skip
    assert pairs(open_source(f"tfds:shapes:train:{tmp_path}")) == [(i, i % 3) for i in range(6)]


@pytest.mark.parametrize(
    "supervised",
    [
        ("image", "label", "weight"),
        ({"picture": "image", "scale": "weight"}, "label"),
        (("image", "weight"), {"class": "label"}),
    ],
)
def test_supervised_keys_of_three_and_of_nests(tmp_path, supervised):
    prepared(
        tmp_path,
        {"image": image(), "other_image": image(), "label": F.ClassLabel(num_classes=3),
         "other": F.ClassLabel(num_classes=2), "weight": F.Scalar(np.float32)},
        lambda i: {"image": pixels(i), "other_image": pixels(99), "label": label(i, 3),
                   "other": i % 2, "weight": 0.5},
        supervised=supervised,
    )  # fmt: skip
    assert pairs(open_source(f"tfds:shapes:train:{tmp_path}")) == [(i, i % 3) for i in range(6)]


def test_features_in_dictionaries_of_their_own(tmp_path):
    prepared(
        tmp_path,
        {"input": {"image": image(), "id": F.Text()}, "target": {"label": F.ClassLabel(
            num_classes=3)}},
        lambda i: {"input": {"image": pixels(i), "id": "x"}, "target": {"label": label(i, 3)}},
    )  # fmt: skip
    assert pairs(open_source(f"tfds:shapes:train:{tmp_path}")) == [(i, i % 3) for i in range(6)]


def test_two_labels_and_nothing_that_tells_which(tmp_path):
    prepared(
        tmp_path,
        {"image": image(), "fine": F.ClassLabel(num_classes=6), "coarse": F.ClassLabel(
            num_classes=2)},
        lambda i: {"image": pixels(i), "fine": label(i, 6), "coarse": i % 2},
    )  # fmt: skip
    expected = (
        r"expected one ClassLabel feature, found 2 \(.*, .*\) among .*, and its supervised_keys"
    )
    with pytest.raises(InputError, match=expected):
        open_source(f"tfds:shapes:train:{tmp_path}")


def test_several_labels_an_image_beside_the_one_it_had(tmp_path):
    features = {"image": image(), "original_label": F.ClassLabel(num_classes=4),
                "real_label": F.Sequence(F.ClassLabel(num_classes=4))}  # fmt: skip
    for number, supervised in enumerate((("image", "real_label"), None)):
        prepared(
            tmp_path / str(number),
            features,
            lambda i: {"image": pixels(i), "original_label": 0, "real_label": [i % 4, 3]},
            supervised=supervised,
        )
        source = open_source(f"tfds:shapes:train:{tmp_path / str(number)}")
        assert source.label_shape == (4,)
        assert all(source[i][1][3] == 1 for i in range(len(source)))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A directory with two versions of a dataset, one of another with configs."""
    root = tmp_path_factory.mktemp("data")
    features = {"image": image(), "label": F.ClassLabel(names=["round", "square"])}

    def example(i):
        return {"image": pixels(i), "label": i % 2}

    prepared(root, features, example, version="1.9.0", count=6)
    prepared(root, features, example, version="1.10.0", count=8)
    prepared(root, features, example, name="blobs", configs=("matched-frequency", "top"))
    prepared(root, features, example, name="mnist", version="3.0.0")
    return root


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("shapes:train", 8),
        ("shapes:1.9.0:train", 6),
        ("shapes:1.*.*:train", 8),
        ("shapes:train+test", 16),
        ("shapes:1.9.0:train[1:3]+test[:1]", 3),
        ("shapes:train[:50%]", 4),
        ("shapes:train[-2:]", 2),
        ("shapes:all", 16),
        ("blobs/top:train", 6),
        ("blobs/top:1.0.0:test", 6),
        ("mnist:train", 6),  # of another version than TFDS's own
    ],
)
def test_names_that_are_taken(shapes, name, count):
    assert len(open_source(f"tfds:{name}:{shapes}")) == count


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("shapes:2.0.0:train", "version 2.0.0 is not prepared, only 1.10.0, 1.9.0"),
        ("shapes:trian", "no split 'trian', did you mean 'train'"),
        ("shapes:train+tset", "no split 'tset', did you mean 'test'"),
        ("shapes:train[abc]", r"'train\[abc\]' is no split of train \(8 examples\)"),
        ("shapes:train[200%:]", r"'train\[200%:\]' is no split of"),
        ("shapes:train[900:]", r"'train\[900:\]' is no split of"),
        ("shapes:train[", r"'train\[.*' is no split of"),
        ("shapes:train[:0]", r"split 'train\[:0\]' has no examples"),
        ("shapes:train[5:2]", r"split 'train\[5:2\]' has no examples"),
        ("blobs:train", "several configs are prepared: name one of tfds:blobs/matched-frequency"),
        ("blobs/matched-freqency:train", "did you mean 'matched-frequency'"),
        ("shapes/foo:train", "shapes has no config 'foo': expected tfds:shapes:SPLIT"),
        ("mnist/foo:train", "mnist has no config 'foo'"),
        ("shape:train", "no dataset 'shape', did you mean 'shapes'"),
        ("imagnet2012:train", "did you mean 'imagenet2012'"),
        ("qqqqqq:train", "none of that name is prepared; prepared in .*: blobs, mnist, shapes"),
        ("cifar10:train", "nothing is prepared in .*run `tfds build cifar10"),
        ("imagenet_v2/matched-freqency:test", "did you mean 'matched-frequency'"),
    ],
)
def test_names_that_mean_nothing(shapes, name, expected):
    with pytest.raises(InputError, match=expected) as error:
        open_source(f"tfds:{name}:{shapes}")
    assert str(error.value).startswith(f"data 'tfds:{name}:{shapes}'")
    assert "\n" not in str(error.value)


def test_a_name_without_its_split_is_told_the_splits(tmp_path, monkeypatch, digits):
    with pytest.raises(InputError, match=r"SPLIT\[:DATA_DIR\], where SPLIT is one of train, test"):
        open_source("tfds:digits:1.0.0")
    with pytest.raises(InputError, match="expected tfds:NAME"):
        open_source("tfds:")


def test_which_version_is_read_is_said_where_there_are_several(shapes, caplog):
    with caplog.at_level(logging.INFO, "convit_jax"):
        open_source(f"tfds:shapes:train:{shapes}")
        open_source(f"tfds:mnist:train:{shapes}")
    assert "shapes: version 1.10.0; also prepared: 1.9.0" in caplog.text
    assert "mnist: version 3.0.0 is prepared and read, TFDS's own is 3.0.1" in caplog.text


def test_a_data_directory_that_is_not_there():
    with pytest.raises(InputError, match="no directory '/nowhere/at/all'"):
        open_source("tfds:mnist:train:/nowhere/at/all")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("digits:train[abc]", r"'train\[abc\]' is no split of train \(1400 examples\) and test"),
        ("digits:train:/data", r"expected digits:train\|test"),
        ("digits:", r"expected digits:train\|test"),
        ("digits:train[:0]", "has no examples"),
    ],
)
def test_digits_that_there_are_not(name, expected, digits):
    with pytest.raises(InputError, match=expected):
        open_source(name)


def test_part_of_the_digits(digits):
    assert len(open_source("digits:train[:10]+test[5:10]")) == 15


def test_a_dataset_whose_description_is_garbled(tmp_path):
    features = {"image": image(), "label": F.ClassLabel(num_classes=2)}
    prepared(tmp_path, features, lambda i: {"image": pixels(i), "label": i % 2})
    (tmp_path / "shapes/1.0.0/dataset_info.json").write_text("{")
    with pytest.raises(InputError, match=r"^data 'tfds:shapes:train:.*' cannot be opened: "):
        open_source(f"tfds:shapes:train:{tmp_path}")


def test_a_fault_of_the_machine_is_no_wrong_name(shapes, monkeypatch):
    def denied(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tfds, "builder_from_directory", denied)
    with pytest.raises(MachineError, match="permission denied"):
        open_source(f"tfds:shapes:train:{shapes}")


def test_the_papers_appendix_c_is_opened(tmp_path, monkeypatch):
    """`configs/convit_ti_plus.py:cifar100`, on few images with CIFAR-100's features."""
    features = {"id": F.Text(), "image": F.Image(shape=(32, 32, 3), encoding_format="png"),
                "label": F.ClassLabel(num_classes=100), "coarse_label": F.ClassLabel(
                num_classes=20)}  # fmt: skip
    prepared(
        tmp_path, features, supervised=("image", "label"), name="cifar100", count=8,
        example=lambda i: {"id": "x", "image": pixels(i, side=32), "label": 99 - i,
                           "coarse_label": i},
    )  # fmt: skip
    monkeypatch.setattr(prepared_names.file_utils, "list_data_dirs", lambda: [tmp_path])
    config = make_config("configs/convit_ti_plus.py:cifar100")
    examples, eval_examples = open_training_data(config)
    assert (len(examples), len(eval_examples)) == (8, 8)
    assert len(examples.class_names) == 100
    assert pairs(examples) == [(i, 99 - i) for i in range(8)]
