import io
import os
import pathlib
import pickle
import struct

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from convit_jax.data import open_source
from convit_jax.data.sources import tfrecord_index
from convit_jax.data.sources.digits import TRAIN_IMAGES
from convit_jax.errors import InputError
from tests.field import builders


def test_digits_are_those_of_scikit_learn(digits):
    test = open_source("digits:test")
    assert (len(digits), len(test)) == (1400, 397)
    assert digits.class_names == tuple("0123456789")

    original = load_digits()
    expected = np.round(original.images * 255 / 16).astype(np.uint8)
    for source, split in ((digits, slice(TRAIN_IMAGES)), (test, slice(TRAIN_IMAGES, None))):
        actual = sorted(
            (label, Image.open(io.BytesIO(encoded)).tobytes())
            for encoded, label in (source[i] for i in range(len(source)))
        )
        pairs = zip(original.target[split], expected[split], strict=True)
        assert actual == sorted((int(label), image.tobytes()) for label, image in pairs)


def test_digits_are_written_as_array_record_once(digits, tfds_data_dir):
    files = list(tfds_data_dir.glob("digits/1.0.0/*array_record*"))
    assert len(files) == 2
    modified = [file.stat().st_mtime_ns for file in files]
    open_source("digits:train")
    assert [file.stat().st_mtime_ns for file in files] == modified


def test_a_prepared_dataset_is_opened_by_its_tfds_name(digits, tfds_data_dir):
    first_ten = open_source(f"tfds:digits:train[:10]:{tfds_data_dir}")
    assert len(first_ten) == 10
    assert first_ten[3] == digits[3]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit:train", "unknown kind 'digit', expected digits:train"),
        ("folder:", "no directory '', expected folder:PATH"),
        ("folder:/nowhere", "no directory '/nowhere'"),
        ("digits", "expected digits:train|test"),
        ("digits:tst", "no split 'tst', did you mean 'test'"),
        ("tfds:imagenet2012", r"expected tfds:NAME.*:SPLIT"),
        ("tfds:no_such_dataset:train", "TFDS knows no dataset 'no_such_dataset'"),
        ("tfds:mnist:train", "nothing is prepared in .*tfds build mnist"),
    ],
)
def test_missing_data_are_reported_in_a_sentence(name, message, digits):
    with pytest.raises(InputError, match=message):
        open_source(name)


def encode(shade, image_format="JPEG"):
    return builders.encode(Image.new("RGB", (20, 16), (shade, 2 * shade, 30)), image_format)


def make_folder(root, classes):
    """Write {class: {file name: bytes}} as directories; return the name of the source."""
    for class_name, files in classes.items():
        for name, content in files.items():
            path = root / class_name / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return f"folder:{root}"


def test_the_classes_of_a_folder_are_in_alphabetical_order(tmp_path):
    name = make_folder(
        tmp_path,
        {
            "zebra": {"b.jpeg": encode(3), "a.JPG": encode(1)},
            "ant": {"deep/er/x.png": encode(5, "PNG"), "note.txt": b"", ".hidden.jpg": b""},
            ".cache": {"x.jpg": b""},
        },
    )
    source = open_source(name)
    assert source.class_names == ("ant", "zebra")
    assert [source[i] for i in range(len(source))] == [
        (encode(5, "PNG"), 0), (encode(1), 1), (encode(3), 1),
    ]  # fmt: skip
    assert source.describe(1) == f"{tmp_path}/zebra/a.JPG"


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({}, "no class directories in it, expected PATH/CLASS/IMAGE"),
        ({"a": {"x.jpg": b"1"}, "b": {"x.txt": b""}}, "no images .* in the class directory b"),
    ],
)
def test_folders_without_images_are_reported_in_a_sentence(tmp_path, classes, message):
    with pytest.raises(InputError, match=message):
        open_source(make_folder(tmp_path, classes))


FEATURES = {
    "photo": tfds.features.Image(encoding_format="jpeg"),
    "shape": tfds.features.ClassLabel(names=["round", "square"]),
    "file_name": tfds.features.Text(),
    "weight": tfds.features.Tensor(shape=(2,), dtype=np.float32),
}


def example(i):
    return {"photo": io.BytesIO(encode(i)), "shape": i % 2, "file_name": f"{1000 - i}.jpg",
            "weight": np.ones(2, np.float32)}  # fmt: skip


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Names of one dataset prepared in both file formats, in several files each."""
    names = {}
    for file_format in ("tfrecord", "array_record"):
        directory = tmp_path_factory.mktemp(file_format)
        builders.prepare_dataset(
            directory, FEATURES, example, count=30, file_format=file_format, num_shards=3
        )
        names[file_format] = f"tfds:shapes:{{}}:{directory}"
    return names


def contents(source):
    return sorted(source[i] + source.examples.name_and_label(i)[:1] for i in range(len(source)))


def test_tfrecord_and_array_record_have_the_same_contents(shapes):
    tfrecord, array_record = (
        open_source(shapes[file_format].format("train"))
        for file_format in ("tfrecord", "array_record")
    )
    assert tfrecord.class_names == array_record.class_names == ("round", "square")
    expected = sorted((encode(i), i % 2, f"{1000 - i}.jpg".encode()) for i in range(30))
    assert contents(tfrecord) == contents(array_record) == expected
    assert tfrecord.describe(29).startswith("record 9 of ")


def test_a_slice_of_a_tfrecord_split(shapes):
    full = open_source(shapes["tfrecord"].format("train"))
    part = open_source(shapes["tfrecord"].format("train[5:17]"))
    assert [part[i] for i in range(12)] == [full[i] for i in range(5, 17)]


def test_the_index_is_built_once_and_rebuilt_when_a_file_changes(shapes, monkeypatch):
    name = shapes["tfrecord"].format("train[:9]")
    indexed = []
    monkeypatch.setattr(
        tfrecord_index,
        "record_offsets",
        lambda path, original=tfrecord_index.record_offsets: indexed.append(path) or original(path),
    )
    open_source(name)
    num_indexed = len(indexed)
    assert num_indexed > 0
    open_source(name)
    assert len(indexed) == num_indexed
    path = pathlib.Path(indexed[0])
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime + 10))
    open_source(name)
    assert len(indexed) > num_indexed


def test_sources_can_be_pickled(shapes):
    for name in shapes.values():
        copy = pickle.loads(pickle.dumps(open_source(name.format("train"))))
        assert len(contents(copy)) == 30


def test_a_damaged_tfrecord_file_is_reported_in_a_sentence(tmp_path):
    path = tmp_path / "x.tfrecord"
    path.write_bytes(struct.pack("<QI", 100, 0) + b"too little")
    with pytest.raises(InputError, match=r"x.tfrecord ends inside record 0"):
        tfrecord_index.record_offsets(str(path))


def test_a_split_without_labels_is_reported_in_a_sentence(tmp_path):
    builders.prepare_dataset(tmp_path, FEATURES, lambda i: example(i) | {"shape": -1})
    with pytest.raises(InputError, match="the first label is -1, expected 0 to 1"):
        open_source(f"tfds:shapes:test:{tmp_path}")


def test_the_real_imagenet_builder(tmp_path, monkeypatch):
    """TFDS prepares `imagenet2012` from tar files laid out like the real ones, with few images."""
    manual = tmp_path / "downloads" / "manual"
    builder = tfds.builder("imagenet2012", data_dir=tmp_path)
    synsets = [builder.info.features["label"].int2str(i) for i in (0, 7, 999)]

    by_class = []
    for number, synset in enumerate(synsets):
        images = [(f"{synset}_{i}.JPEG", encode(10 * number + i)) for i in range(4)]
        path = builders.write_tar(tmp_path / f"{synset}.tar", images)
        by_class.append((path.name, path.read_bytes()))
    builders.write_tar(manual / "ILSVRC2012_img_train.tar", by_class)
    for split in ("val", "test"):
        images = [(f"ILSVRC2012_{split}_{i:08d}.JPEG", encode(i)) for i in range(1, 6)]
        builders.write_tar(manual / f"ILSVRC2012_img_{split}.tar", images)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=manual), file_format="tfrecord"
    )
    train, validation = (
        open_source(f"tfds:imagenet2012:{split}:{tmp_path}") for split in ("train", "validation")
    )
    assert len(train.class_names) == 1000
    assert contents(train) == sorted(
        (encode(10 * number + i), label, f"{synset}_{i}.JPEG".encode())
        for number, (label, synset) in enumerate(zip((0, 7, 999), synsets, strict=True))
        for i in range(4)
    )
    assert len(validation) == 5
