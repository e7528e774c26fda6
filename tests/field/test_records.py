"""Folders and records in the wild: damaged, very many, or beside other files."""

import collections
import errno
import logging
import os

import numpy as np
import pytest

from convit_jax.data import (
    BrokenImageCounter,
    EpochOrder,
    EvalTransform,
    LoaderOptions,
    TrainTransform,
    eval_batches,
    open_source,
    train_batches,
)
from convit_jax.data.open_files import OpenFiles
from convit_jax.data.reading import BrokenImage, Row, RowReader
from convit_jax.data.sources.image_paths import find_images
from convit_jax.data.sources.records import ArrayRecords, Span, TFExamples
from convit_jax.data.sources.source import Source
from convit_jax.data.sources.subsets import describe_classes, subset
from convit_jax.data.sources.tfrecord_index import (
    cache_arrays,
    load_cached_arrays,
    open_tfrecords,
    record_offsets,
)
from convit_jax.errors import InputError, MachineError, RunError
from convit_jax.training import loop
from tests.field.builders import (
    encode,
    example,
    exif,
    folder,
    orientation,
    photograph,
    segment,
    tfrecord,
    with_segments,
    write_array_record,
)

TRANSFORM = EvalTransform((8, 8), 3)
JPEG = encode(photograph(), "JPEG")


def source_of(records, **options):
    examples = TFExamples(records, "image", "label", **options)
    return Source("tfds:photographs:train", examples, ("a", "b", "c"))


@pytest.fixture
def write_records(tmp_path):
    """A function that writes records to a TFRecord file and returns a function that opens it."""

    def write(payloads):
        path = tmp_path / "x.tfrecord"
        path.write_bytes(tfrecord(payloads))
        return lambda: open_tfrecords([Span(str(path), 0, len(payloads))], [len(payloads)], "x")

    return write


def first_batch(images, count, max_broken):
    """Return the first training batch, of all of the images."""
    order, options = EpochOrder(count, count, 0), LoaderOptions(max_broken=max_broken)
    transform = TrainTransform((8, 8), 3)
    return next(train_batches(images, order, transform, start_step=0, num_steps=1, options=options))


@pytest.fixture(params=["tfrecord", "array_record"])
def dataset(request, tmp_path):
    """A function of serialised examples: a source that reads them from a file."""

    def make(payloads, **options):
        path = tmp_path / f"photographs.{request.param}"
        span = Span(str(path), 0, len(payloads))
        if request.param == "tfrecord":
            path.write_bytes(tfrecord(payloads))
            records = open_tfrecords([span], [len(payloads)], "photographs")
        else:
            write_array_record(path, payloads)
            records = ArrayRecords((span,))
        return source_of(records, **options)

    return make


GOOD = example(image=JPEG, label=1, file_name=b"a.jpg")
BAD_RECORDS = {
    "garbled": b"\xff\xfe garbage",
    "cut short": GOOD[: len(GOOD) // 2],
    "empty": b"",
    "no image": example(label=1),
    "no label": example(image=JPEG),
    "a number for an image": example(image=7, label=1),
    "a fraction for a label": example(image=JPEG, label=1.0),
    "text for a label": example(image=JPEG, label=b"cat"),
    "a label that is too large": example(image=JPEG, label=3),
    "a negative label": example(image=JPEG, label=-1),
    "half a photograph": example(image=JPEG[: len(JPEG) // 2], label=1),
}


@pytest.mark.parametrize("problem", BAD_RECORDS)
def test_a_bad_record_is_counted_and_logged_and_the_others_are_read(dataset, problem, caplog):
    source = dataset([GOOD] * 3 + [BAD_RECORDS[problem]] + [GOOD] * 4)
    (batch,) = eval_batches(source, 8, TRANSFORM, options=LoaderOptions(max_broken=0.2))
    assert batch["mask"].tolist() == [1, 1, 1, 0, 1, 1, 1, 1]
    (line,) = [line for line in caplog.messages if "cannot read" in line]
    assert "record 3 of " in line
    assert first_batch(source, 8, max_broken=0.2)["label"].tolist() == [1] * 8
    with pytest.raises(RunError, match=r"record 3 of .*max_broken allows 0"):
        list(eval_batches(source, 8, TRANSFORM))


def test_multi_labels_beyond_the_classes_are_refused(dataset, caplog):
    source = dataset(
        [GOOD, example(image=JPEG, label=5), example(image=JPEG, label=-1)], label_shape=(3,)
    )
    (batch,) = eval_batches(source, 3, TRANSFORM, options=LoaderOptions(max_broken=0.9))
    assert batch["mask"].tolist() == [1, 0, 0]
    assert batch["label"][0].tolist() == [0, 1, 0]
    assert "its labels are [5], expected 0 to 2" in caplog.text


def test_a_subset_leaves_out_garbled_records(dataset):
    source = dataset([GOOD, b"\xff garbage", example(image=JPEG, label=0), GOOD, GOOD])
    part = subset(source, fraction=1.0, choice="first", classes=2, seed=0)
    assert len(part) == 4
    assert describe_classes(part) == "4 examples, 1 to 3 of each of 2 classes"


def test_a_record_is_described_without_reading_it(dataset, tmp_path):
    source = dataset([GOOD] * 3, name_key="file_name")
    for path in tmp_path.glob("photographs.*"):
        path.unlink()
    assert source.describe(2).startswith("record 2 of ")


class Failing:
    """Photographs, some of which raise an error when they are read."""

    label_shape = ()

    def __init__(self, error, failing):
        self.error, self.failing = error, failing

    def __len__(self):
        return 40

    def __getitem__(self, index):
        if index in self.failing:
            raise self.error
        return JPEG, 0

    def describe(self, index):
        return f"photograph {index}"


# Only two cases in a worker process, which takes a second to start.
@pytest.mark.parametrize(
    ("code", "workers"),
    [(errno.EMFILE, 0), (errno.ENFILE, 0), (errno.ENOMEM, 0), (errno.EACCES, 0), (errno.ESTALE, 0),
     (errno.EIO, 0), (errno.EMFILE, 1), (errno.EIO, 1)],
)  # fmt: skip
def test_faults_of_the_machine_stop_the_run_and_are_not_broken_images(code, workers, caplog):
    images = Failing(OSError(code, os.strerror(code)), range(40))
    options = LoaderOptions(num_workers=workers, max_broken=0.9)
    with pytest.raises(MachineError, match=r"^photograph \d+: \w+") as raised:
        list(eval_batches(images, 40, TRANSFORM, options=options))
    assert "broken" not in str(raised.value)
    assert "cannot read" not in caplog.text


def test_io_errors_of_single_files_are_broken_images():
    images = Failing(OSError(errno.EIO, os.strerror(errno.EIO)), {7, 8})
    (batch,) = eval_batches(images, 40, TRANSFORM, options=LoaderOptions(max_broken=0.1))
    assert np.flatnonzero(batch["mask"] == 0).tolist() == [7, 8]


def test_an_image_deleted_after_opening_is_logged(tmp_path, caplog):
    source = open_source(folder(tmp_path, ["cat", "dog"], count=10))
    (tmp_path / "cat" / "3.png").unlink()
    (batch,) = eval_batches(source, 20, TRANSFORM, options=LoaderOptions(max_broken=0.1))
    assert batch["mask"].sum() == 19
    assert f"cannot read {tmp_path}/cat/3.png: No such file or directory" in caplog.text


def test_consecutive_broken_images_are_not_replaced_by_black_ones():
    images = Failing(ValueError("garbled"), range(36))
    with pytest.raises(RunError, match=r"cannot read photograph \d+: garbled; nor any image near"):
        first_batch(images, 40, max_broken=0.95)


SHARDS = """
import resource, sys, time
import numpy as np
from convit_jax.data import EvalTransform, LoaderOptions, eval_batches
from convit_jax.data.sources.records import ArrayRecords, Span, TFExamples
from convit_jax.data.sources.source import Source
from convit_jax.data.sources.tfrecord_index import open_tfrecords
file_format, root = sys.argv[1:3]
soft, hard, workers, count = map(int, sys.argv[3:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
spans = tuple(Span(f"{root}/{i}.{file_format}", 0, 2) for i in range(count))
if file_format == "tfrecord":
    records = open_tfrecords(spans, [2] * count, "shards")
else:
    records = ArrayRecords(spans)
source = Source("tfds:shards:train", TFExamples(records, "image", "label"), ("a", "b"))
if __name__ == "__main__":
    examples = 0
    options = LoaderOptions(workers)
    for _ in range(2):
        for batch in eval_batches(source, 512, EvalTransform((8, 8), 3), options=options):
            examples += int(batch["mask"].sum())
    print(examples)
"""


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory):
    """A directory of 1,100 files with two photographs each, in both formats."""
    root = tmp_path_factory.mktemp("shards")
    for number in range(1100):
        payloads = [GOOD, example(image=JPEG, label=0)]
        (root / f"{number}.tfrecord").write_bytes(tfrecord(payloads))
        write_array_record(root / f"{number}.array_record", payloads)
    return root


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
@pytest.mark.parametrize(
    ("soft", "hard", "workers"), [(1024, 4096, 0), (1024, 1024, 0), (256, 256, 1)]
)
def test_more_shards_than_the_limit_of_open_files(
    many_shards, file_format, soft, hard, workers, run_python
):
    arguments = (file_format, many_shards, soft, hard, workers, 1100)
    result = run_python("-c", SHARDS, *arguments, timeout=120, XDG_CACHE_HOME=str(many_shards))
    assert (result.stdout.strip(), result.returncode) == ("4400", 0), result.stderr


def test_the_least_recently_used_files_are_closed():
    opened, closed = [], []
    files = OpenFiles(lambda path: opened.append(path) or path, closed.append, 2)
    for path in "abacab":
        with files.use(path) as file:
            assert file == path
    assert opened == list("abcb")
    assert closed == list("bc")
    with files.use("x"), files.use("y"), files.use("z"), files.use("x"):
        assert not {"x", "y", "z"} & set(closed)  # in use
    with pytest.raises(RuntimeError), files.use("x"):
        raise RuntimeError("damaged")
    assert closed[-1] == "x"  # to be reopened on next use


def garble(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]


DAMAGE = {
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "garbled": garble,
    "not an archive": lambda data: b"hello",
}


@pytest.mark.parametrize("damage", [*DAMAGE, "other arrays", "too short"])
def test_a_damaged_index_is_rebuilt(damage, write_records, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    open_records = write_records([GOOD] * 5)
    first = open_records()
    (cache,) = (tmp_path / "cache").rglob("*.npz")
    if damage == "other arrays":
        np.savez(cache, offsets=np.arange(3))
    elif damage == "too short":
        np.savez(cache, **{"0": np.arange(3)})
    else:
        cache.write_bytes(DAMAGE[damage](cache.read_bytes()))
    again = open_records()
    assert np.array_equal(again.offsets[0], first.offsets[0])
    assert caplog.text.count("rebuilt") == 1
    open_records()
    assert caplog.text.count("rebuilt") == 1


@pytest.mark.parametrize("damage", ["truncated", "garbled"])
def test_damaged_cached_labels_are_read_again(damage, write_records, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = source_of(write_records([GOOD, example(image=JPEG, label=0)])())
    expected = describe_classes(source)
    (cache,) = (tmp_path / "cache").rglob("labels_*.npz")
    cache.write_bytes(DAMAGE[damage](cache.read_bytes()))
    assert describe_classes(source) == expected


def test_an_unusable_cache_directory_is_logged_once(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("not a directory")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for name in ("a.npz", "b.npz"):
        assert load_cached_arrays(name, ("x",), lambda arrays: True) is None
        cache_arrays(name, {"x": np.zeros(1)})
    assert [line for line in caplog.messages if "nothing can be cached" in line] == [
        f"nothing can be cached in {tmp_path}/file/convit_jax: Not a directory"
    ]


def test_a_missing_shard_is_reported_in_a_sentence(tmp_path):
    with pytest.raises(InputError, match=r"data 'x' .*No such file"):
        open_tfrecords([Span(str(tmp_path / "none.tfrecord"), 0, 1)], [1], "x")


@pytest.mark.parametrize("mutation", range(60))
def test_a_garbled_tfrecord_file_is_read_in_part_or_refused(mutation, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rng = np.random.default_rng(mutation)
    data = bytearray(tfrecord([GOOD] * 3))
    positions = rng.integers(len(data), size=3) if mutation % 2 else rng.integers(20, size=2)
    for position in positions:
        data[position] = rng.integers(256)
    path = tmp_path / "x.tfrecord"
    path.write_bytes(bytes(data))
    try:
        records = open_tfrecords([Span(str(path), 0, 3)], [3], "x")
    except InputError:
        return
    source = source_of(records)
    (batch,) = eval_batches(source, 3, TRANSFORM, options=LoaderOptions(max_broken=0.99))
    assert batch["image"].shape == (3, 8, 8, 3)


def test_a_folder_with_all_kinds_of_files(tmp_path, caplog):
    formats = {"jpg": "JPEG", "JFIF": "JPEG", "tif": "TIFF", "gif": "GIF", "jp2": "JPEG2000",
             "webp": "WEBP", "avif": "AVIF", "bmp": "BMP", "PNG": "PNG", "ppm": "PPM", "tga": "TGA",
             "jpe": "JPEG", "qoi": "QOI"}  # fmt: skip
    for name in ("cat", "dog"):
        directory = tmp_path / name
        directory.mkdir()
        for suffix, image_format in formats.items():
            (directory / f"x.{suffix}").write_bytes(encode(photograph(), image_format))
        for other in ("a.heic", "b.HEIC", "note.txt", "Thumbs.db", "._x.jpg", ".DS_Store", "x.eps",
                      "README"):  # fmt: skip
            (directory / other).write_bytes(b"")
        (directory / "album.png").mkdir()  # a directory in spite of its suffix
        (directory / "album.png" / "y.jpg").write_bytes(JPEG)
    with caplog.at_level(logging.INFO):
        source = open_source(f"folder:{tmp_path}")
    assert len(source) == 2 * (len(formats) + 1)
    lines = [line for line in caplog.messages if "skipped" in line]
    assert len(lines) == 1
    for text in ("4 .heic", "2 .txt", "2 .eps", "2 without a suffix"):
        assert text in lines[0]
    assert ".db" not in lines[0]
    (batch,) = eval_batches(source, len(source), TRANSFORM)
    assert batch["mask"].all()
    assert len(find_images([str(tmp_path)])) == len(source)


def test_cyclic_links_are_followed_once(tmp_path):
    folder(tmp_path / "real", ["cat"], count=2)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "cat").symlink_to(tmp_path / "real" / "cat")
    (tmp_path / "real" / "cat" / "up").symlink_to(tmp_path / "real" / "cat")
    (tmp_path / "real" / "cat" / "gone").symlink_to(tmp_path / "nowhere")
    assert len(open_source(f"folder:{tmp_path / 'images'}")) == 2


def test_a_tilde_in_the_name_of_images_is_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder(tmp_path / "pictures", ["cat"], count=1)
    assert find_images(["~/pictures"]) == [f"{tmp_path}/pictures/cat/0.png"]


ROTATED = with_segments(JPEG, segment(0xE1, exif(orientation(6))))


@pytest.mark.parametrize(
    ("choice", "rotates_folder", "rotates_tfds"),
    [("auto", True, False), ("honour", True, True), ("ignore", False, False)],
)
def test_rotation_by_exif_is_configurable(
    choice, rotates_folder, rotates_tfds, write_records, tmp_path
):
    """By default folders are rotated; TFDS is not, as published accuracies were measured."""
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "x.jpg").write_bytes(ROTATED)
    records = write_records([example(image=ROTATED, label=0)])()
    sources = (
        (open_source(f"folder:{tmp_path}"), rotates_folder),
        (source_of(records), rotates_tfds),
    )
    unrotated = np.asarray(photograph().convert("RGB")).astype(int)
    for source, rotates in sources:
        shape = (24, 16) if rotates else (16, 24)
        for workers in (0, 1):
            options = LoaderOptions(workers, exif_rotation=choice)
            (batch,) = eval_batches(source, 1, EvalTransform(shape, 3), options=options)
            expected = np.rot90(unrotated, -1) if rotates else unrotated
            assert np.abs(batch["image"][0] - expected).mean() < 5


def test_an_unknown_choice_of_rotation_is_refused():
    with pytest.raises(InputError, match="exif_rotation='honor': did you mean 'honour'"):
        LoaderOptions(exif_rotation="honor")


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4)])
def test_images_of_one_to_four_channels_pass_the_full_recipe(mode, channels, tmp_path):
    source = open_source(folder(tmp_path, ["a", "b"], count=4, side=40, mode=mode))
    transform = TrainTransform(
        (16, 16), channels, crop="random_resized", flip=0.5, rotate=10, zoom=0.1, shear=5,
        translate=0.1, randaugment="rand-m9-mstd0.5-inc1" if channels == 3 else "",
    )  # fmt: skip
    for batch in train_batches(source, EpochOrder(8, 8, 0), transform, start_step=0, num_steps=3):
        assert batch["image"].shape == (8, 16, 16, channels)
        assert np.ptp(batch["image"]) > 100


@pytest.mark.parametrize("channels", [0, 5, 13])
def test_other_numbers_of_channels_are_refused(channels):
    for transform in (TrainTransform, EvalTransform):
        with pytest.raises(InputError, match=f"in_channels={channels}: images are read with 1"):
            transform((8, 8), channels)


def test_the_limit_of_broken_images_counts_those_of_all_processes():
    """Ten processes find 5 % of their tenths broken: that is 5 % of all, not 0.5 %."""
    images = Failing(ValueError(), ())
    broken = []
    for process in range(10):
        counter = BrokenImageCounter(images, 0.05, enforce=False)
        counter.add(
            [BrokenImage(index, f"photograph {index}", "x") for index in (process, 39 - process)]
        )
        counter.add([BrokenImage(0, "photograph 0", "x")])
        broken += list(counter.indices)
    messages = set()
    for _ in range(2):
        with pytest.raises(RunError, match=r"at least 20 of 40 images.*allows 2") as raised:
            BrokenImageCounter(images, 0.05, enforce=False).check(broken)
        messages.add(str(raised.value))
    assert len(messages) == 1
    BrokenImageCounter(images, 0.5, enforce=False).check(broken)


def test_each_broken_image_is_logged_once(caplog):
    reader = RowReader(Failing(ValueError("garbled"), {3}), TRANSFORM, (8, 8, 3), None)
    counter = BrokenImageCounter(reader.images, 0.5)
    for _ in range(3):
        rows = reader.read([Row(3), Row(4)], np.empty((2, 8, 8, 3), np.uint8))
        counter.add(rows.broken)
    assert collections.Counter(caplog.messages) == {
        "cannot read photograph 3: garbled (1 of at most 20)": 1
    }


def test_record_offsets(tmp_path):
    path = tmp_path / "x.tfrecord"
    path.write_bytes(tfrecord([bytes(10_000)] * 3))
    assert record_offsets(str(path)).tolist() == [0, 10_016, 20_032, 30_048]


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGBA", 4)])
def test_training_on_images_of_one_and_four_channels(mode, channels, make_config, tmp_path):
    name = folder(tmp_path / "images", ["cat", "dog"], count=10, side=20, mode=mode)
    config = make_config(
        train_for="2 steps", eval_every="2 steps", batch_size=8, eval_batch_size=8,
        model__in_channels=channels, attention_images=4,
        augment={"crop": "random_resized", "flip": 0.5, "mixup": 0.8, "cutmix": 1.0, "erase": 0.25},
        data={"image_size": (8,), "mean": (0.4,) * channels, "std": (0.3,) * channels,
              "train": name, "eval": name},
    )  # fmt: skip
    outcome = loop.train(config, str(tmp_path / "run"))
    assert outcome.step == 2
    assert outcome.evaluation["examples"] == 20
