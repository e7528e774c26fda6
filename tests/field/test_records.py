"""Folders and records as they lie on people's disks: damaged, very many, beside other files."""

import collections
import errno
import logging
import os
import subprocess
import sys

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
from convit_jax.data.sources import tfrecord_index as index_module
from convit_jax.data.sources.image_paths import find_images
from convit_jax.data.sources.records import ArrayRecords, Span, TFExamples
from convit_jax.data.sources.source import Source
from convit_jax.data.sources.subsets import describe_classes, subset
from convit_jax.data.sources.tfrecord_index import keep_arrays, kept_arrays, open_tfrecords
from convit_jax.errors import InputError, MachineError, RunError
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

VIEW = EvalTransform((8, 8), 3)
JPEG = encode(photograph(), "JPEG")


def source_of(examples, classes=3):
    return Source("tfds:photographs:train", examples, tuple("abcdefgh")[:classes])


@pytest.fixture(params=["tfrecord", "array_record"])
def dataset(request, tmp_path):
    """A function of serialised examples: a source of them."""

    def make(payloads, **options):
        path = tmp_path / f"photographs.{request.param}"
        span = Span(str(path), 0, len(payloads))
        if request.param == "tfrecord":
            path.write_bytes(tfrecord(payloads))
            records = open_tfrecords([span], [len(payloads)], "photographs")
        else:
            write_array_record(path, payloads)
            records = ArrayRecords((span,))
        return source_of(TFExamples(records, "image", "label", **options))

    return make


GOOD = example(image=JPEG, label=1, file_name=b"a.jpg")
ODD_RECORDS = {
    "garbled": b"\xff\xfe garbage",
    "cut short": GOOD[: len(GOOD) // 2],
    "empty": b"",
    "no image": example(label=1),
    "no label": example(image=JPEG),
    "a number for an image": example(image=7, label=1),
    "a fraction for a label": example(image=JPEG, label=1.0),
    "words for a label": example(image=JPEG, label=b"cat"),
    "a label beyond the classes": example(image=JPEG, label=3),
    "a label below them": example(image=JPEG, label=-1),
    "half a photograph": example(image=JPEG[: len(JPEG) // 2], label=1),
}


@pytest.mark.parametrize("odd", ODD_RECORDS)
def test_one_odd_record_is_counted_and_named_and_the_rest_is_read(dataset, odd, caplog):
    source = dataset([GOOD] * 3 + [ODD_RECORDS[odd]] + [GOOD] * 4)
    (batch,) = eval_batches(source, 8, VIEW, options=LoaderOptions(max_broken=0.2))
    assert batch["mask"].tolist() == [1, 1, 1, 0, 1, 1, 1, 1]
    (line,) = [line for line in caplog.messages if "cannot read" in line]
    assert "record 3 of " in line
    order = EpochOrder(8, 8, 0)
    batches = train_batches(
        source, order, TrainTransform((8, 8), 3), start_step=0, num_steps=1,
        options=LoaderOptions(max_broken=0.2),
    )  # fmt: skip
    assert next(batches)["label"].tolist() == [1] * 8
    with pytest.raises(RunError, match=r"record 3 of .*max_broken allows 0"):
        list(eval_batches(source, 8, VIEW))


def test_images_of_several_labels_have_only_those_that_there_are(dataset, caplog):
    source = dataset([GOOD, example(image=JPEG, label=5), example(image=JPEG, label=-1)], classes=3)
    (batch,) = eval_batches(source, 3, VIEW, options=LoaderOptions(max_broken=0.9))
    assert batch["mask"].tolist() == [1, 0, 0]
    assert batch["label"][0].tolist() == [0, 1, 0]
    assert "its labels are [5], expected 0 to 2" in caplog.text


def test_part_of_data_of_which_some_are_garbled_is_of_the_rest(dataset):
    whole = dataset([GOOD, b"\xff garbage", example(image=JPEG, label=0), GOOD, GOOD])
    classes = subset(whole, fraction=1.0, choice="first", classes=2, seed=0)
    assert len(classes) == 4
    assert describe_classes(classes) == "4 examples, 1 to 3 of each of 2 classes"


def test_what_a_record_is_called_is_known_without_reading_it(dataset, tmp_path):
    source = dataset([GOOD] * 3, name_key="file_name")
    for path in tmp_path.glob("photographs.*"):
        path.unlink()
    assert source.describe(2).startswith("record 2 of ")


class Failing:
    """Photographs of which reading some raises an error."""

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


# Two of them in a worker process, too: one takes a second to start.
@pytest.mark.parametrize(
    ("code", "workers"),
    [(errno.EMFILE, 0), (errno.ENFILE, 0), (errno.ENOMEM, 0), (errno.EACCES, 0), (errno.ESTALE, 0),
     (errno.EIO, 0), (errno.EMFILE, 1), (errno.EIO, 1)],
)  # fmt: skip
def test_faults_of_the_machine_stop_the_run_and_are_no_broken_images(code, workers, caplog):
    images = Failing(OSError(code, os.strerror(code)), range(40))
    reading = LoaderOptions(num_workers=workers, max_broken=0.9)
    with pytest.raises(MachineError, match=r"^photograph \d+: \w+") as raised:
        list(eval_batches(images, 40, VIEW, options=reading))
    assert "broken" not in str(raised.value)
    assert "cannot read" not in caplog.text


def test_one_bad_sector_is_one_broken_image():
    images = Failing(OSError(errno.EIO, os.strerror(errno.EIO)), {7, 8})
    (batch,) = eval_batches(images, 40, VIEW, options=LoaderOptions(max_broken=0.1))
    assert np.flatnonzero(batch["mask"] == 0).tolist() == [7, 8]


def test_one_image_that_was_deleted_meanwhile_is_named(tmp_path, caplog):
    source = open_source(folder(tmp_path, ["cat", "dog"], count=10))
    (tmp_path / "cat" / "3.png").unlink()
    (batch,) = eval_batches(source, 20, VIEW, options=LoaderOptions(max_broken=0.1))
    assert batch["mask"].sum() == 19
    assert f"cannot read {tmp_path}/cat/3.png: No such file or directory" in caplog.text


def test_a_class_of_broken_images_does_not_train_on_black_ones(tmp_path):
    images = Failing(ValueError("garbled"), range(36))
    batches = train_batches(
        images, EpochOrder(40, 40, 0), TrainTransform((8, 8), 3), start_step=0, num_steps=1,
        options=LoaderOptions(max_broken=0.95),
    )  # fmt: skip
    with pytest.raises(RunError, match=r"cannot read photograph \d+: garbled; nor any image near"):
        next(batches)


SHARDS = """
import resource, sys, time
import numpy as np
from convit_jax.data import EvalTransform, LoaderOptions, eval_batches
from convit_jax.data.sources.records import ArrayRecords, Span, TFExamples
from convit_jax.data.sources.source import Source
from convit_jax.data.sources.tfrecord_index import open_tfrecords
soft, hard, kind, workers, root, count = *map(int, sys.argv[1:3]), sys.argv[3], int(sys.argv[4]), sys.argv[5], int(sys.argv[6])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
spans = tuple(Span(f"{root}/{i}.{kind}", 0, 2) for i in range(count))
records = open_tfrecords(spans, [2] * count, kind) if kind == "tfrecord" else ArrayRecords(spans)
source = Source("tfds:shards:train", TFExamples(records, "image", "label"), ("a", "b"))
if __name__ == "__main__":
    examples, labels = 0, []
    for _ in range(2):
        for batch in eval_batches(source, 512, EvalTransform((8, 8), 3), options=LoaderOptions(workers)):
            examples += int(batch["mask"].sum())
    print(examples)
"""  # noqa: E501


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory):
    """1,100 files of two photographs each, in either format."""
    root = tmp_path_factory.mktemp("shards")
    for number in range(1100):
        payloads = [GOOD, example(image=JPEG, label=0)]
        (root / f"{number}.tfrecord").write_bytes(tfrecord(payloads))
        write_array_record(root / f"{number}.array_record", payloads)
    return root


@pytest.mark.parametrize("kind", ["tfrecord", "array_record"])
@pytest.mark.parametrize(
    ("soft", "hard", "workers"), [(1024, 4096, 0), (1024, 1024, 0), (256, 256, 1)]
)
def test_more_shards_than_files_may_be_open(many_shards, kind, soft, hard, workers, repository):
    done = subprocess.run(
        [sys.executable, "-c", SHARDS, *map(str, (soft, hard, kind, workers, many_shards, 1100))],
        env=os.environ | {"PYTHONPATH": str(repository), "XDG_CACHE_HOME": str(many_shards)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.stdout.strip(), done.returncode) == ("4400", 0), done.stderr


def test_only_the_files_used_last_are_kept_open():
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
    assert closed[-1] == "x"  # and will be opened anew


def spoilt(data, how):
    garbled = bytearray(data)
    if how == "garbled":
        garbled[len(data) // 2] ^= 255
    return {
        "cut in half": data[: len(data) // 2],
        "empty": b"",
        "garbled": bytes(garbled),
        "no archive": b"hello",
    }[how]


@pytest.mark.parametrize("how", ["cut in half", "empty", "garbled", "no archive", "other", "short"])
def test_a_spoilt_index_is_made_anew(how, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "x.tfrecord"
    path.write_bytes(tfrecord([GOOD] * 5))
    spans = [Span(str(path), 0, 5)]
    first = open_tfrecords(spans, [5], "x")
    (cache,) = (tmp_path / "cache").rglob("*.npz")
    if how == "other":
        np.savez(cache, offsets=np.arange(3))  # of another version
    elif how == "short":
        np.savez(cache, **{"0": np.arange(3)})
    else:
        cache.write_bytes(spoilt(cache.read_bytes(), how))
    again = open_tfrecords(spans, [5], "x")
    assert np.array_equal(again.offsets[0], first.offsets[0])
    assert caplog.text.count("made anew") == 1
    open_tfrecords(spans, [5], "x")
    assert caplog.text.count("made anew") == 1


@pytest.mark.parametrize("how", ["cut in half", "garbled"])
def test_spoilt_labels_are_read_anew(how, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "x.tfrecord"
    path.write_bytes(tfrecord([GOOD, example(image=JPEG, label=0)]))
    records = open_tfrecords([Span(str(path), 0, 2)], [2], "x")
    source = source_of(TFExamples(records, "image", "label"))
    expected = describe_classes(source)
    (cache,) = (tmp_path / "cache").rglob("labels_*.npz")
    cache.write_bytes(spoilt(cache.read_bytes(), how))
    assert describe_classes(source) == expected


def test_where_nothing_can_be_kept_it_is_said_once(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("no directory")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for name in ("a.npz", "b.npz"):
        assert kept_arrays(name, ("x",), lambda kept: True) is None
        keep_arrays(name, x=np.zeros(1))
    assert [line for line in caplog.messages if "nothing is kept" in line] == [
        f"nothing is kept in {tmp_path}/file/convit_jax: Not a directory"
    ]


def test_a_shard_that_is_missing_is_a_sentence(tmp_path):
    with pytest.raises(InputError, match=r"data 'x' .*No such file"):
        open_tfrecords([Span(str(tmp_path / "none.tfrecord"), 0, 1)], [1], "x")


@pytest.mark.parametrize("mutation", range(60))
def test_a_garbled_tfrecord_file_is_read_in_part_or_a_sentence(mutation, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rng = np.random.default_rng(mutation)
    data = bytearray(tfrecord([GOOD] * 3))
    places = rng.integers(len(data), size=3) if mutation % 2 else rng.integers(20, size=2)
    for place in places:
        data[place] = rng.integers(256)
    path = tmp_path / "x.tfrecord"
    path.write_bytes(bytes(data))
    try:
        records = open_tfrecords([Span(str(path), 0, 3)], [3], "x")
    except InputError:
        return
    source = source_of(TFExamples(records, "image", "label"))
    (batch,) = eval_batches(source, 3, VIEW, options=LoaderOptions(max_broken=0.99))
    assert batch["image"].shape == (3, 8, 8, 3)


def test_a_folder_of_everything_that_cameras_and_systems_leave(tmp_path, caplog):
    kinds = {"jpg": "JPEG", "JFIF": "JPEG", "tif": "TIFF", "gif": "GIF", "jp2": "JPEG2000",
             "webp": "WEBP", "avif": "AVIF", "bmp": "BMP", "PNG": "PNG", "ppm": "PPM", "tga": "TGA",
             "jpe": "JPEG", "qoi": "QOI"}  # fmt: skip
    for name in ("cat", "dog"):
        directory = tmp_path / name
        directory.mkdir()
        for suffix, kind in kinds.items():
            (directory / f"x.{suffix}").write_bytes(encode(photograph(), kind))
        for other in ("a.heic", "b.HEIC", "note.txt", "Thumbs.db", "._x.jpg", ".DS_Store", "x.eps",
                      "README"):  # fmt: skip
            (directory / other).write_bytes(b"")
        (directory / "album.png").mkdir()  # a directory, whatever it is called
        (directory / "album.png" / "y.jpg").write_bytes(JPEG)
    with caplog.at_level(logging.INFO):
        source = open_source(f"folder:{tmp_path}")
    assert len(source) == 2 * (len(kinds) + 1)
    lines = [line for line in caplog.messages if "left out" in line]
    assert len(lines) == 1
    for words in ("4 .heic", "2 .txt", "2 .eps", "2 without a suffix"):
        assert words in lines[0]
    assert ".db" not in lines[0]
    (batch,) = eval_batches(source, len(source), VIEW)
    assert batch["mask"].all()
    assert len(find_images([str(tmp_path)])) == len(source)


def test_links_that_lead_in_circles_are_followed_once(tmp_path):
    folder(tmp_path / "real", ["cat"], count=2)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "cat").symlink_to(tmp_path / "real" / "cat")
    (tmp_path / "real" / "cat" / "up").symlink_to(tmp_path / "real" / "cat")
    (tmp_path / "real" / "cat" / "gone").symlink_to(tmp_path / "nowhere")
    assert len(open_source(f"folder:{tmp_path / 'images'}")) == 2


def test_the_home_directory_is_understood_where_images_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder(tmp_path / "pictures", ["cat"], count=1)
    assert find_images(["~/pictures"]) == [f"{tmp_path}/pictures/cat/0.png"]


TURNED = with_segments(JPEG, segment(0xE1, exif(orientation(6))))


@pytest.mark.parametrize(
    ("choice", "folder_turns", "tfds_turns"),
    [("auto", True, False), ("honour", True, True), ("ignore", False, False)],
)
def test_rotation_by_exif_is_a_choice(choice, folder_turns, tfds_turns, tmp_path):
    """Folders are turned and TFDS is not, as published accuracies were measured."""
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "x.jpg").write_bytes(TURNED)
    path = tmp_path / "x.tfrecord"
    path.write_bytes(tfrecord([example(image=TURNED, label=0)]))
    records = open_tfrecords([Span(str(path), 0, 1)], [1], "x")
    sources = (
        (open_source(f"folder:{tmp_path}"), folder_turns),
        (source_of(TFExamples(records, "image", "label")), tfds_turns),
    )
    upright = np.asarray(photograph().convert("RGB")).astype(int)
    for source, turns in sources:
        shape = (24, 16) if turns else (16, 24)
        for workers in (0, 1):
            reading = LoaderOptions(workers, exif_rotation=choice)
            (batch,) = eval_batches(source, 1, EvalTransform(shape, 3), options=reading)
            expected = np.rot90(upright, -1) if turns else upright
            assert np.abs(batch["image"][0] - expected).mean() < 5


def test_another_choice_of_rotation_is_refused():
    with pytest.raises(InputError, match="exif_rotation='honor': did you mean 'honour'"):
        LoaderOptions(exif_rotation="honor")


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4)])
def test_images_of_any_number_of_channels_train_with_the_whole_recipe(mode, channels, tmp_path):
    source = open_source(folder(tmp_path, ["a", "b"], count=4, side=40, mode=mode))
    transform = TrainTransform(
        (16, 16), channels, crop="random_resized", flip=0.5, rotate=10, zoom=0.1, shear=5,
        translate=0.1, randaugment="rand-m9-mstd0.5-inc1" if channels == 3 else "",
    )  # fmt: skip
    for batch in train_batches(source, EpochOrder(8, 8, 0), transform, start_step=0, num_steps=3):
        assert batch["image"].shape == (8, 16, 16, channels)
        assert np.ptp(batch["image"]) > 100


@pytest.mark.parametrize("channels", [0, 5, 13])
def test_other_numbers_of_channels_are_refused_at_the_start(channels):
    for transform in (TrainTransform, EvalTransform):
        with pytest.raises(InputError, match=f"in_channels={channels}: images are read with 1"):
            transform((8, 8), channels)


def test_the_limit_of_broken_images_is_one_of_all_that_processes_meet():
    """Ten processes of which each meets 5 % in its tenth: 5 % of all, not 0.5 %."""
    images = Failing(ValueError(), ())
    everybodys = []
    for process in range(10):
        health = BrokenImageCounter(images, 0.05, enforce=False)
        health.add(
            [BrokenImage(index, f"photograph {index}", "x") for index in (process, 39 - process)]
        )
        health.add([BrokenImage(0, "photograph 0", "x")])
        everybodys += list(health.indices)
    told = set()
    for _ in range(2):
        with pytest.raises(RunError, match=r"at least 20 of 40 images.*allows 2") as raised:
            BrokenImageCounter(images, 0.05, enforce=False).check(everybodys)
        told.add(str(raised.value))
    assert len(told) == 1
    BrokenImageCounter(images, 0.5, enforce=False).check(everybodys)


def test_each_broken_image_is_logged_once(caplog):
    reader = RowReader(Failing(ValueError("garbled"), {3}), VIEW, (8, 8, 3), None)
    health = BrokenImageCounter(reader.images, 0.5)
    for _ in range(3):
        found = reader.read([Row(3), Row(4)], np.empty((2, 8, 8, 3), np.uint8))
        health.add(found.broken)
    assert collections.Counter(caplog.messages) == {
        "cannot read photograph 3: garbled (1 of at most 20)": 1
    }


def test_indexing_reads_no_more_of_a_file_than_its_headers(tmp_path, monkeypatch):
    path = tmp_path / "x.tfrecord"
    path.write_bytes(tfrecord([bytes(10_000)] * 3))
    assert index_module.record_offsets(str(path)).tolist() == [0, 10_016, 20_032, 30_048]
