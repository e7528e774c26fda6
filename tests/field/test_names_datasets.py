"""Names of prepared datasets as users write them, and features as datasets define them."""

import logging

import numpy as np
import pytest
import tensorflow_datasets as tfds

from convit_jax.config.files import make_config
from convit_jax.data import open_source
from convit_jax.data.images.decoding import decode
from convit_jax.data.sources import prepared
from convit_jax.errors import InputError, MachineError
from convit_jax.training import open_training_data
from tests.field.builders import prepare_dataset, solid_image

F = tfds.features


def image(side=8, channels=3):
    return F.Image(shape=(side, side, channels), encoding_format="png")


def shades_and_labels(source):
    """Return the sorted pairs of each image's shade and label."""
    examples = (source[index] for index in range(len(source)))
    return sorted((int(decode(encoded, 3)[0, 0, 0]), label) for encoded, label in examples)


def prepare_and_open(directory, features, example, supervised=None):
    """Prepare and open a dataset with a feature `image`, solid of shade i, and the given ones."""
    prepare_dataset(
        directory, {"image": image()} | features,
        lambda i: {"image": solid_image(i)} | example(i), supervised=supervised,
    )  # fmt: skip
    return open_source(f"tfds:shapes:train:{directory}")


@pytest.mark.parametrize(
    ("label_key", "class_names"),
    [("label", ("0", "1", "2", "3", "4", "5")), ("coarse_label", ("even", "odd"))],
)
def test_supervised_keys_select_one_of_cifar100s_labels(tmp_path, label_key, class_names):
    source = prepare_and_open(
        tmp_path,
        {"id": F.Text(), "label": F.ClassLabel(num_classes=6),
         "coarse_label": F.ClassLabel(names=["even", "odd"])},
        lambda i: {"id": str(i), "label": i % 6, "coarse_label": i % 2},
        supervised=("image", label_key),
    )  # fmt: skip
    assert source.class_names == class_names
    assert shades_and_labels(source) == [(i, i % len(class_names)) for i in range(6)]


def test_supervised_keys_select_among_two_labels_and_two_images(tmp_path):
    source = prepare_and_open(
        tmp_path,
        {"label": F.ClassLabel(num_classes=3), "species": F.ClassLabel(num_classes=2),
         "file_name": F.Text(), "segmentation_mask": image(channels=1)},
        lambda i: {"label": i % 3, "species": i % 2, "file_name": f"{i}.jpg",
                   "segmentation_mask": solid_image(200, 1)},
        supervised=("image", "label"),
    )  # fmt: skip
    assert shades_and_labels(source) == [(i, i % 3) for i in range(6)]


@pytest.mark.parametrize(
    "supervised",
    [
        ("image", "label", "weight"),
        ({"picture": "image", "scale": "weight"}, "label"),
        (("image", "weight"), {"class": "label"}),
    ],
)
def test_supervised_keys_may_have_weights_and_nests(tmp_path, supervised):
    source = prepare_and_open(
        tmp_path,
        {"other_image": image(), "label": F.ClassLabel(num_classes=3),
         "other": F.ClassLabel(num_classes=2), "weight": F.Scalar(np.float32)},
        lambda i: {"other_image": solid_image(99), "label": i % 3, "other": i % 2, "weight": 0.5},
        supervised=supervised,
    )  # fmt: skip
    assert shades_and_labels(source) == [(i, i % 3) for i in range(6)]


def test_nested_features(tmp_path):
    features = {"input": {"image": image(), "id": F.Text()},
                "target": {"label": F.ClassLabel(num_classes=3)}}  # fmt: skip
    prepare_dataset(
        tmp_path, features,
        lambda i: {"input": {"image": solid_image(i), "id": "x"}, "target": {"label": i % 3}},
    )  # fmt: skip
    source = open_source(f"tfds:shapes:train:{tmp_path}")
    assert shades_and_labels(source) == [(i, i % 3) for i in range(6)]


def test_two_labels_without_supervised_keys_are_refused(tmp_path):
    expected = (
        r"expected one ClassLabel feature, found 2 \(.*, .*\) among .*, and its supervised_keys"
    )
    with pytest.raises(InputError, match=expected):
        prepare_and_open(
            tmp_path,
            {"fine": F.ClassLabel(num_classes=6), "coarse": F.ClassLabel(num_classes=2)},
            lambda i: {"fine": i % 6, "coarse": i % 2},
        )


@pytest.mark.parametrize("supervised", [("image", "real_label"), None])
def test_a_sequence_of_labels_is_preferred_to_the_original_label(tmp_path, supervised):
    source = prepare_and_open(
        tmp_path,
        {"original_label": F.ClassLabel(num_classes=4),
         "real_label": F.Sequence(F.ClassLabel(num_classes=4))},
        lambda i: {"original_label": 0, "real_label": [i % 4, 3]},
        supervised=supervised,
    )  # fmt: skip
    assert source.label_shape == (4,)
    assert all(source[i][1][3] == 1 for i in range(len(source)))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A data directory with two versions of a dataset, two configs of another, and a third."""
    root = tmp_path_factory.mktemp("data")
    features = {"image": image(), "label": F.ClassLabel(names=["round", "square"])}

    def example(i):
        return {"image": solid_image(i), "label": i % 2}

    prepare_dataset(root, features, example, version="1.9.0", count=6)
    prepare_dataset(root, features, example, version="1.10.0", count=8)
    prepare_dataset(root, features, example, name="blobs", configs=("matched-frequency", "top"))
    prepare_dataset(root, features, example, name="mnist", version="3.0.0")
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
        ("mnist:train", 6),  # not TFDS's default version
    ],
)
def test_valid_names(shapes, name, count):
    assert len(open_source(f"tfds:{name}:{shapes}")) == count


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("shapes:2.0.0:train", "version 2.0.0 of shapes is not prepared, only 1.10.0, 1.9.0"),
        ("shapes:trian", "no split 'trian', did you mean 'train'"),
        ("shapes:train+tset", "no split 'tset', did you mean 'test'"),
        ("shapes:train[abc]", r"'train\[abc\]' is not a split of train \(8 examples\)"),
        ("shapes:train[200%:]", r"'train\[200%:\]' is not a split of"),
        ("shapes:train[900:]", r"'train\[900:\]' is not a split of"),
        ("shapes:train[", r"'train\[.*' is not a split of"),
        ("shapes:train[:0]", r"split 'train\[:0\]' has no examples"),
        ("shapes:train[5:2]", r"split 'train\[5:2\]' has no examples"),
        ("blobs:train", "several configs of blobs are prepared: name one of tfds:blobs/matched"),
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
def test_invalid_names_are_refused(shapes, name, expected):
    with pytest.raises(InputError, match=expected) as error:
        open_source(f"tfds:{name}:{shapes}")
    assert str(error.value).startswith(f"data 'tfds:{name}:{shapes}'")
    assert "\n" not in str(error.value)


def test_the_splits_are_listed_if_none_is_named(digits):
    with pytest.raises(InputError, match=r"SPLIT\[:DATA_DIR\], where SPLIT is one of train, test"):
        open_source("tfds:digits:1.0.0")
    with pytest.raises(InputError, match="expected tfds:NAME"):
        open_source("tfds:")


def test_the_version_is_logged_if_there_are_several(shapes, caplog):
    with caplog.at_level(logging.INFO, "convit_jax"):
        open_source(f"tfds:shapes:train:{shapes}")
        open_source(f"tfds:mnist:train:{shapes}")
    assert "shapes: using version 1.10.0; also prepared: 1.9.0" in caplog.text
    assert "mnist: using version 3.0.0; TFDS's default is 3.0.1" in caplog.text


def test_a_missing_data_directory_is_refused():
    with pytest.raises(InputError, match="no directory '/nowhere/at/all'"):
        open_source("tfds:mnist:train:/nowhere/at/all")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("digits:train[abc]", r"'train\[abc\]' is not a split of train \(1400 examples\) and test"),
        ("digits:train:/data", r"expected digits:train\|test"),
        ("digits:", r"expected digits:train\|test"),
        ("digits:train[:0]", "has no examples"),
    ],
)
def test_invalid_names_of_the_digits_are_refused(name, expected, digits):
    with pytest.raises(InputError, match=expected):
        open_source(name)


def test_slices_of_the_digits(digits):
    assert len(open_source("digits:train[:10]+test[5:10]")) == 15


def test_a_garbled_dataset_info_is_reported(tmp_path):
    prepare_and_open(tmp_path, {"label": F.ClassLabel(num_classes=2)}, lambda i: {"label": i % 2})
    (tmp_path / "shapes/1.0.0/dataset_info.json").write_text("{")
    with pytest.raises(InputError, match=r"^data 'tfds:shapes:train:.*' cannot be opened: "):
        open_source(f"tfds:shapes:train:{tmp_path}")


def test_a_fault_of_the_machine_is_not_a_wrong_name(shapes, monkeypatch):
    def deny(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tfds, "builder_from_directory", deny)
    with pytest.raises(MachineError, match="permission denied"):
        open_source(f"tfds:shapes:train:{shapes}")


def test_the_data_of_the_papers_appendix_c_are_opened(tmp_path, monkeypatch):
    """`configs/convit_ti_plus.py:cifar100` opens a small dataset with CIFAR-100's features."""
    features = {"id": F.Text(), "image": image(side=32), "label": F.ClassLabel(num_classes=100),
                "coarse_label": F.ClassLabel(num_classes=20)}  # fmt: skip
    prepare_dataset(
        tmp_path, features, supervised=("image", "label"), name="cifar100", count=8,
        example=lambda i: {"id": "x", "image": solid_image(i, side=32), "label": 99 - i,
                           "coarse_label": i},
    )  # fmt: skip
    monkeypatch.setattr(prepared.file_utils, "list_data_dirs", lambda: [tmp_path])
    config = make_config("configs/convit_ti_plus.py:cifar100")
    examples, eval_examples = open_training_data(config)
    assert (len(examples), len(eval_examples)) == (8, 8)
    assert len(examples.class_names) == 100
    assert shades_and_labels(examples) == [(i, 99 - i) for i in range(8)]
