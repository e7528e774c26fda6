import errno
import gzip
import io
import json
import logging
import os
import pathlib
import pickle
import tarfile

import numpy as np
import pytest
from etils import epath
from PIL import Image

from convit_jax.data import (
    EpochOrder,
    EvalTransform,
    LoaderOptions,
    TrainTransform,
    describe_classes,
    eval_batches,
    hold_out,
    open_source,
    subset,
    train_batches,
)
from convit_jax.data.sources import imagenet, tar_index
from convit_jax.data.sources.packed_names import PackedNames
from convit_jax.data.sources.shard_patterns import expand_braces
from convit_jax.data.sources.tar_images import TarImages
from convit_jax.data.sources.tar_index import split_name
from convit_jax.errors import InputError, MachineError
from tests.field.builders import encode, write_tar
from tests.helpers import assert_same_batches

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
CLASSES, PER_CLASS = ("ant", "bee", "cat"), 6


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache for each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "convit_jax"


def png(seed):
    """Return a small image; each seed gives another one."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return encode(Image.fromarray(pixels), "PNG")


def correct_checksum(raw, header=0):
    """Correct the checksum of a changed tar header that begins at an offset."""
    raw[header + 148 : header + 156] = b" " * 8
    raw[header + 148 : header + 156] = b"%06o\0 " % sum(raw[header : header + 512])


def sample(key, label, seed=0, suffix=".png"):
    return [(f"{key}.cls", str(label).encode()), (f"{key}{suffix}", png(seed))]


def write_samples(path, labels, key="s{}", **options):
    """Write a shard of samples with the given labels; return the name of the source."""
    members = [m for i, label in enumerate(labels) for m in sample(key.format(i), label, i)]
    return f"wds:{write_tar(path, members, **options)}"


def contents(source):
    return [source[i] for i in range(len(source))]


@pytest.fixture
def copies(tmp_path):
    """The same images as a folder and as three tar files, one of each format."""
    images = [
        (label, f"{name}_{i}", png(100 * label + i))
        for label, name in enumerate(CLASSES)
        for i in range(PER_CLASS)
    ]
    for label, key, content in images:
        path = tmp_path / "folder" / CLASSES[label] / f"{key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for shard, tar_format in enumerate(FORMATS.values()):
        members = []
        for label, key, content in images[shard * PER_CLASS : (shard + 1) * PER_CLASS]:
            members += [(f"{key}.cls", b"%d\n" % label), (f"{key}.png", content),
                        (f"{key}.json", json.dumps({"label": label}).encode())]  # fmt: skip
        # A fractional time gives each member a pax header of its own.
        write_tar(tmp_path / "shards" / f"x-{shard:02}.tar", members, tar_format, mtime=1.5)
    (tmp_path / "classnames.txt").write_text("\n".join(CLASSES) + "\n")
    return (
        open_source(f"folder:{tmp_path}/folder"),
        open_source(f"wds:{tmp_path}/shards/x-{{00..02}}.tar"),
    )


def test_shards_have_the_contents_and_classes_of_a_folder(copies):
    folder, shards = copies
    assert contents(shards) == contents(folder)
    assert shards.class_names == folder.class_names == CLASSES
    assert shards.describe(7).startswith("member bee_1.png of /")
    assert shards.describe(7).endswith("/shards/x-01.tar")
    assert not shards.rotates_by_exif


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_those_of_the_folder_and_resume_at_any_step(copies, num_workers):
    folder, shards = copies
    order = EpochOrder(len(folder), 4, 0)
    transform = TrainTransform((8, 8), 3, rotate=10.0)

    def train(source, start, workers):
        options = LoaderOptions(num_workers=workers)
        steps = {"start_step": start, "num_steps": 11}
        return list(train_batches(source, order, transform, **steps, options=options))

    def evaluate(source, workers):
        options = LoaderOptions(num_workers=workers)
        return list(eval_batches(source, 5, EvalTransform((8, 8), 3), options=options))

    expected = train(folder, 0, 0)
    assert_same_batches(train(shards, 0, num_workers), expected)
    assert_same_batches(train(shards, 7, num_workers), expected[7:])
    assert_same_batches(evaluate(shards, num_workers), evaluate(folder, 0))


@pytest.mark.parametrize("choice", ["first", "random"])
def test_subsets_are_those_of_the_folder_and_read_no_image(copies, choice, monkeypatch):
    folder, shards = copies
    monkeypatch.setattr(TarImages, "__getitem__", lambda *_: pytest.fail("an image was read"))
    options = {"fraction": 0.5, "choice": choice, "classes": 2, "seed": 3}
    parts = [subset(source, **options) for source in (folder, shards)]
    assert np.array_equal(parts[0].indices, parts[1].indices)
    assert describe_classes(parts[1]) == "6 examples, 3 of each of 2 classes"
    halves = [hold_out(source, 0.3, 0) for source in copies]
    for from_folder, from_shards in zip(*halves, strict=True):
        assert np.array_equal(from_folder.indices, from_shards.indices)


def test_the_first_of_a_class_are_the_first_by_name_whatever_the_shard(tmp_path):
    write_tar(tmp_path / "a.tar", [*sample("d/9", 0), *sample("d/2", 0), *sample("e/1", 0)])
    write_tar(tmp_path / "b.tar", [*sample("d/1", 0), *sample("d/2", 0)])
    source = open_source(f"wds:{tmp_path}/{{a,b}}.tar")
    assert source.examples.order_by_name().tolist() == [3, 1, 4, 0, 2]
    assert subset(source, fraction=0.6, choice="first", classes=1, seed=0).indices.tolist() == [
        1, 3, 4,
    ]  # fmt: skip


def test_pickles_hold_arrays_and_no_open_files(copies):
    _, shards = copies
    assert shards[0]
    buffers = []
    pickled = pickle.dumps(shards, protocol=5, buffer_callback=buffers.append)
    assert len(pickled) < 2000
    assert contents(pickle.loads(pickled, buffers=buffers)) == contents(shards)


def test_identity_does_not_depend_on_the_directory(tmp_path):
    names = [write_samples(tmp_path / where / "x.tar", [0, 1]) for where in "ab"]
    changed = write_samples(tmp_path / "c" / "x.tar", [0, 1] * 20)
    identities = [open_source(name).examples.identity() for name in (*names, changed)]
    assert identities[0] == identities[1] != identities[2]


# The tar format.


@pytest.mark.parametrize("tar_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("directory", ["", "d", "long" * 30, "é" * 40 + "/" + "x" * 60])
def test_names_are_read_as_tarfile_reads_them(tmp_path, tar_format, directory):
    key = f"{directory}/k".lstrip("/")
    members = sample(key, 5)
    path = write_tar(tmp_path / "x.tar", [("plain/", {"type": tarfile.DIRTYPE}), *members],
                     tar_format)  # fmt: skip
    source = open_source(f"wds:{path}")
    assert contents(source) == [(png(0), 5)]
    assert source.describe(0) == f"member {key}.png of {path}"
    with tarfile.open(path) as tar:
        assert tar.getmember(f"{key}.png").offset_data == source.examples.offsets[0]


def test_names_beyond_256_bytes_are_read(tmp_path):
    key = "/".join(["n" * 90] * 6)
    for tar_format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = write_tar(tmp_path / "x.tar", sample(key, 1) + sample("y", 2, 1), tar_format)
        source = open_source(f"wds:{path}")
        assert [source.describe(i).split()[1] for i in (0, 1)] == [f"{key}.png", "y.png"]


def test_pax_headers_for_all_members_and_sizes_in_pax_headers(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", pax_headers={"comment": "x" * 700}) as tar:
        for number, (name, content) in enumerate(sample("a", 1) + sample("b", 2, 1)):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            if number == 1:
                info.pax_headers = {"size": str(len(content)), "path": "a.PNG"}
            tar.addfile(info, io.BytesIO(content))
    # Clear the size in the member's header: only its pax header has it.
    raw = bytearray(path.read_bytes())
    header = raw.index(b"a.png\0")
    assert raw[header + 124 : header + 135] != b"0" * 11
    raw[header + 124 : header + 135] = b"0" * 11
    correct_checksum(raw, header)
    path.write_bytes(raw)
    assert contents(open_source(f"wds:{path}")) == [(png(0), 1), (png(1), 2)]


def test_links_and_sparse_files_are_no_images(tmp_path):
    raw = io.BytesIO()

    def add(name, content, **attributes):
        info = tarfile.TarInfo(name)
        info.size = len(content)
        for key, value in attributes.items():
            setattr(info, key, value)
        raw.write(info.tobuf(tarfile.PAX_FORMAT if info.pax_headers else tarfile.GNU_FORMAT))
        raw.write(content + bytes(-len(content) % 512))

    for key in ("hard", "symbolic", "sparse", "pax_sparse", "unknown", "a"):
        # A number that needs the binary form, in another field than the size.
        add(f"{key}.cls", b"3", mtime=2**40)
    # Links have no data, whatever size they say.
    add("hard.png", b"", type=tarfile.LNKTYPE, linkname="a.png", size=900)
    add("symbolic.png", b"", type=tarfile.SYMTYPE, linkname="a.png")
    add("sparse.png", png(7), type=tarfile.GNUTYPE_SPARSE)
    add("pax_sparse.png", png(7), pax_headers={"GNU.sparse.major": "1"})
    add("unknown.png", png(8), type=b"Q")
    add("a.png", png(0))
    path = tmp_path / "x.tar"
    path.write_bytes(raw.getvalue() + bytes(1024))
    assert contents(open_source(f"wds:{path}")) == [(png(0), 3)]


def test_gnu_sparse_maps_of_several_blocks_are_skipped(tmp_path):
    info = tarfile.TarInfo("x.bin")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 700
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[482] = 1
    correct_checksum(header)
    first, last = bytearray(512), bytearray(512)
    first[504] = 1
    rest = write_tar(tmp_path / "rest.tar", sample("a", 1)).read_bytes()
    path = tmp_path / "x.tar"
    path.write_bytes(header + first + last + b"d" * 1024 + rest)
    assert contents(open_source(f"wds:{path}")) == [(png(0), 1)]


def test_old_tar_files_without_a_magic_are_read(tmp_path):
    path = write_tar(tmp_path / "x.tar", sample("a", 1), tarfile.USTAR_FORMAT)
    raw = bytearray(path.read_bytes())
    for header in (0, 1024):
        raw[header + 257 : header + 265] = bytes(8)
        correct_checksum(raw, header)
    path.write_bytes(raw)
    assert contents(open_source(f"wds:{path}")) == [(png(0), 1)]


def test_empty_shards_hold_nothing(tmp_path):
    write_samples(tmp_path / "0.tar", [0])
    write_tar(tmp_path / "1.tar", [])
    write_tar(tmp_path / "3.tar", [])
    write_samples(tmp_path / "2.tar", [1])
    source = open_source(f"wds:{tmp_path}/{{0..3}}.tar")
    assert [source.describe(i).rpartition("/")[2] for i in (0, 1)] == ["0.tar", "2.tar"]


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (1556, r"x\.tar ends at byte 1,556, inside the member s0\.png, which ends at byte 1,8.."),
        (1212, r"x\.tar ends at byte 1,212, inside the header of a member at byte 1,024: it is"),
        (512, r"x\.tar ends at byte 512, inside the member s0\.cls, which ends at byte 513"),
    ],
)
def test_truncated_shards_are_reported_when_they_are_indexed(tmp_path, size, message):
    name = write_samples(tmp_path / "x.tar", [0], tar_format=tarfile.USTAR_FORMAT)
    os.truncate(tmp_path / "x.tar", size)
    with pytest.raises(InputError, match=message):
        open_source(name)


def test_a_shard_without_its_end_mark_is_mentioned(tmp_path, caplog):
    name = write_samples(tmp_path / "x.tar", [0, 1], tar_format=tarfile.USTAR_FORMAT)
    path = tmp_path / "x.tar"
    open_source(name)
    assert "end mark" not in caplog.text
    path.write_bytes(path.read_bytes()[:2048])
    assert len(open_source(name)) == 1
    assert f"end mark, which may have lost members, such as {path}" in caplog.text


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: b"text\n", "is not a tar file"),
        (lambda raw: b"x" * 5000, "is not a tar file"),
        (lambda raw: raw[:1024] + b"\xff" * 512 + raw[1536:], "no valid tar header at byte 1,024"),
        (lambda raw: raw[:148] + b"0000000\0" + raw[156:], "is not a tar file"),
        (lambda raw: gzip.compress(raw), r"is compressed \(gzip\).* expected an uncompressed .tar"),
        (lambda raw: b"\x28\xb5\x2f\xfd" + raw, r"is compressed \(zstd\)"),
        (lambda raw: b"", "is empty: it was not copied completely"),
    ],
)
def test_files_that_are_no_tar_files_are_reported_in_a_sentence(tmp_path, damage, message):
    name = write_samples(tmp_path / "x.tar", [0, 1], tar_format=tarfile.USTAR_FORMAT)
    path = tmp_path / "x.tar"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=rf"data 'wds:.*x\.tar {message}|x\.tar has {message}"):
        open_source(name)


@pytest.mark.parametrize(
    "records", [b"x", b"30 size=5\n", b"12 size=abc\n", b"11 size=-5\n", b"8 size\n\n"]
)
def test_malformed_pax_headers_are_reported_in_a_sentence(tmp_path, records):
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(records)
    header = info.tobuf(tarfile.USTAR_FORMAT)
    rest = write_tar(tmp_path / "rest.tar", sample("a", 1), tarfile.USTAR_FORMAT).read_bytes()
    path = tmp_path / "x.tar"
    path.write_bytes(header + records.ljust(512, b"\0") + rest)
    with pytest.raises(InputError, match=r"x.tar has no valid tar header at byte (0|1,024)"):
        open_source(f"wds:{path}")


def test_extension_headers_of_absurd_sizes_are_not_read(tmp_path, monkeypatch):
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 22
    path = tmp_path / "x.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT))
    os.truncate(path, (1 << 22) + 1024)
    read, counts = tar_index.Window.read, []
    monkeypatch.setattr(
        tar_index.Window, "read", lambda *args: counts.append(args[2]) or read(*args)
    )
    with pytest.raises(InputError, match="no valid tar header at byte 0: it is damaged"):
        open_source(f"wds:{path}")
    assert counts == [512]


def test_a_shard_that_ends_inside_a_long_name_is_reported(tmp_path):
    path = write_tar(tmp_path / "x.tar", sample("n" * 120, 1), tarfile.GNU_FORMAT)
    os.truncate(path, 600)
    with pytest.raises(InputError, match=r"x.tar ends at byte 600, inside the header of a member:"):
        open_source(f"wds:{path}")


# Samples and labels.


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jpg", ("a", ".jpg")),
        ("d.e/a.B.JPG", ("d.e/a", ".b.jpg")),
        ("d/.hidden.jpg", ("", "")),
        ("d/none", ("d/none", "")),
        ("d/", ("", "")),
    ],
)
def test_names_are_split_at_the_first_dot_of_the_base_name(name, expected):
    assert split_name(name) == expected


@pytest.mark.parametrize(
    ("members", "label"),
    [
        ({"a.cls": b"7"}, 7),
        ({"a.CLS": b" 7\n"}, 7),
        ({"a.json": b'{"label": 7}'}, 7),
        ({"a.json": b'{"cls": "7"}'}, 7),
        ({"a.json": b'{"label": null, "cls": 7}'}, 7),
        ({"a.json": b'{"label": "wasp", "cls": 7}'}, 7),
        ({"a.json": b"7"}, 7),
        ({"a.cls": b"7", "a.json": b'{"label": "7"}'}, 7),
        ({"a.cls": b"7", "a.json": b'{"width": 3}'}, 7),
        ({"a.cls": b"7", "a.json": b'{"label": "wasp"}'}, 7),
        ({"a.cls": b"7", "a.json": b"no json"}, 7),
        ({"a.cls": b"7", "a.json": b'{"label": 8}'}, "its .cls and its .json have different"),
        ({"a.cls": b"wasp"}, "no integer of at most nine digits"),
        ({"a.cls": b""}, "no integer of at most nine digits"),
        ({"a.cls": b"1234567890"}, "no integer of at most nine digits"),
        ({"a.cls": b"\xff"}, "no integer of at most nine digits"),
        ({"a.cls": b"1" * 2_000_000}, "no integer of at most nine digits"),
        ({"a.json": b'{"label": 7, "x": "%s"}' % (b"x" * 2_000_000)}, "or more than a megabyte"),
        ({"a.json": b'{"label": true}'}, "no integer of at most nine digits"),
        ({"a.json": b'{"label": 1.5}'}, "no integer of at most nine digits"),
        ({"a.json": b"[" * 100_000}, "no integer of at most nine digits"),
    ],
)  # fmt: skip
def test_labels_are_read_from_cls_and_json(tmp_path, members, label):
    others = sample("z", 9)
    path = write_tar(tmp_path / "x.tar", [*members.items(), ("a.png", png(1)), *others])
    source = open_source(f"wds:{path}")
    assert len(source) == 2
    if isinstance(label, int):
        assert source[0] == (png(1), label)
    else:
        with pytest.raises(ValueError, match=label):
            _ = source[0]


def test_a_broken_label_counts_as_a_broken_image(tmp_path):
    members = [("bad.cls", b"1"), ("bad.json", b'{"label": 2}'), ("bad.png", png(1))]
    path = write_tar(tmp_path / "x.tar", [*members, *sample("a", 0), *sample("b", 2)])
    source = open_source(f"wds:{path}")
    options = LoaderOptions(max_broken=0.5)
    (batch,) = eval_batches(source, 3, EvalTransform((8, 8), 3), options=options)
    assert batch["mask"].tolist() == [0, 1, 1]
    assert batch["label"][1:].tolist() == [0, 2]


def test_incomplete_samples_are_skipped_and_counted_each_time(tmp_path, caplog):
    path = write_tar(
        tmp_path / "x.tar",
        [
            ("README", b"no sample"), ("._x.png", b"no sample"),
            ("no_image.cls", b"1"), ("d/no_label.png", png(1)), ("no_label.png", png(2)),
            ("other.seg.png", png(3)), ("other.cls", b"1"),
            *sample("a", 1), ("a.jpg", png(4)), ("a.cls", b"2"),
        ],
    )  # fmt: skip
    for _ in range(2):
        caplog.clear()
        assert contents(open_source(f"wds:{path}")) == [(png(0), 1)]
        lines = [record.message for record in caplog.records if record.levelno == logging.WARNING]
        assert [line.removeprefix(f"wds:{path}: ") for line in lines] == [
            f"2 members are ignored, as their samples have another of the kind, such as a.jpg of "
            f"{path}",
            f"2 samples without an image are skipped, such as no_image of {path}",
            f"2 samples without a label are skipped, such as d/no_label of {path}",
        ]


def test_keys_may_occur_in_several_shards_and_members_in_any_order(tmp_path):
    write_tar(tmp_path / "0.tar", [("a.PNG", png(1)), ("b.png", png(2)), ("b.cls", b"1"),
                                   ("a.cls", b"0")])  # fmt: skip
    write_tar(tmp_path / "1.tar", sample("a", 1, 3))
    source = open_source(f"wds:{tmp_path}/*.tar")
    assert contents(source) == [(png(1), 0), (png(2), 1), (png(3), 1)]


# Class names.


def test_classes_are_numbered_without_names(tmp_path):
    assert open_source(write_samples(tmp_path / "x.tar", [2, 0])).class_names == ("0", "1", "2")


@pytest.mark.parametrize("parent", [False, True])
def test_class_names_are_read_from_a_file(tmp_path, parent, monkeypatch):
    write_samples(tmp_path / "d" / "imagenet.tar", [1, 0])
    names = tmp_path / ("" if parent else "d") / "classnames.txt"
    names.write_text("tench\r\ngolde\u0301n fish\n\n")
    monkeypatch.chdir(tmp_path / "d")
    for path in (f"{tmp_path}/d/imagenet.tar", "imagenet.tar"):
        assert open_source(f"wds:{path}").class_names == ("tench", "gold\u00e9n fish")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\n\nb\n", "classnames.txt: line 2 is empty"),
        ("a\nb\na\n", "classnames.txt: lines 1 and 3 both name 'a'"),
        ("a\n", r"the label of member s1.png of .*x.tar is 1, expected 0 to 0, the lines of .*txt"),
        ("\n", "classnames.txt: line 1 is empty"),
    ],
)
def test_wrong_class_names_are_reported_in_a_sentence(tmp_path, text, message):
    name = write_samples(tmp_path / "x.tar", [0, 1])
    (tmp_path / "classnames.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        open_source(name)


@pytest.mark.parametrize(
    ("shard", "is_imagenet"),
    [
        ("imagenet1k-train-0000.tar", True), ("imagenet-train-0.tar", True),
        ("ImageNet_2012_val.tar", True), ("imagenet.tar", True), ("imagenet-0000.tar", True),
        ("imagenet-a-0.tar", False), ("imagenet_r_0.tar", False), ("imagenet21k-0.tar", False),
        ("imagenet-12k-0.tar", False), ("imagenet100-0.tar", False), ("imagenette.tar", False),
        ("tiny-imagenet-0.tar", False), ("miniimagenet.tar", False), ("train-0.tar", False),
    ],
)  # fmt: skip
def test_shards_named_imagenet_have_its_classes(tmp_path, shard, is_imagenet, caplog):
    caplog.set_level(logging.INFO)
    source = open_source(write_samples(tmp_path / shard, [0, 3]))
    assert imagenet.is_imagenet(source.class_names) == is_imagenet
    assert caplog.text.count("taken for those of ImageNet's") == is_imagenet


def test_a_thousand_occurring_labels_are_imagenets(tmp_path):
    members = [(f"{i}.{suffix}", b"%d" % i) for i in range(1000) for suffix in ("cls", "jpg")]
    source = open_source(f"wds:{write_tar(tmp_path / 'x.tar', members)}")
    assert imagenet.is_imagenet(source.class_names)
    part = open_source(f"wds:{write_tar(tmp_path / 'y.tar', members[:-2])}")
    assert part.class_names == tuple(map(str, range(999)))
    more = open_source(write_samples(tmp_path / "imagenet-0.tar", [0, 1000]))
    assert len(more.class_names) == 1001


# The index.


def test_the_index_is_made_once_and_anew_when_a_shard_changes(tmp_path, monkeypatch):
    for number in range(3):
        write_samples(tmp_path / f"{number}.tar", [number])
    name, indexed = f"wds:{tmp_path}/{{0..2}}.tar", []
    original = tar_index._index_shard
    monkeypatch.setattr(
        tar_index, "_index_shard", lambda path, state: indexed.append(path) or original(path, state)
    )
    first = contents(open_source(name))
    assert len(indexed) == 3
    assert contents(open_source(name)) == first
    assert len(indexed) == 3
    # The same size and second, another label.
    before = (tmp_path / "1.tar").stat()
    write_samples(tmp_path / "1.tar", [2])
    os.utime(tmp_path / "1.tar", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert (tmp_path / "1.tar").stat().st_size == before.st_size
    assert [label for _, label in contents(open_source(name))] == [0, 2, 2]
    assert len(indexed) == 6


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"no index"),
        lambda path: path.write_bytes(path.read_bytes()[:200]),
        lambda path: rewrite(path, labels=np.zeros(1, np.int32)),
        lambda path: rewrite(path, labels=np.zeros(2, np.float32)),
        lambda path: rewrite(path, shard_ends=np.zeros(0, np.int64)),
        lambda path: rewrite(path, shard_ends=np.full(1, 9)),
        lambda path: rewrite(path, shard_ends=np.array([1, 2])),
        lambda path: rewrite(path, name_ends=np.zeros(1, np.int64)),
    ],
)
def test_a_damaged_index_is_made_again(tmp_path, cache, damage, caplog):
    name = write_samples(tmp_path / "x.tar", [0, 1])
    expected = contents(open_source(name))
    (path,) = cache.glob("tar_index_*.npz")
    damage(path)
    assert contents(open_source(name)) == expected
    assert "cannot be used and is rebuilt" in caplog.text


def rewrite(path, **arrays):
    with np.load(path) as file:
        np.savez(path, **(dict(file) | arrays))


def test_shards_are_read_without_a_cache(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(open_source(write_samples(tmp_path / "x.tar", [0, 1]))) == 2


def test_a_shard_that_became_shorter_is_reported_by_its_image(copies):
    _, shards = copies
    path = pathlib.Path(shards.examples.shards[0])
    os.truncate(path, int(shards.examples.offsets[0] + shards.examples.sizes[0]) - 3)
    with pytest.raises(ValueError, match="the shard ends 3 bytes before the end of the member"):
        _ = shards[0]


def test_few_files_are_open_at_a_time(tmp_path, monkeypatch):
    for number in range(12):
        write_samples(tmp_path / f"{number:02}.tar", [0])
    monkeypatch.setattr("convit_jax.data.open_files.max_open_files", lambda count: 3)
    source = open_source(f"wds:{tmp_path}/{{00..11}}.tar")
    contents(source)
    targets = [str(link.resolve()) for link in pathlib.Path("/proc/self/fd").iterdir()]
    assert sum(target.startswith(str(tmp_path)) for target in targets) == 3


@pytest.mark.parametrize(
    ("where", "code", "fault"),
    [
        ("convit_jax.data.sources.tar_shards.os.stat", errno.EACCES, "permission denied"),
        ("convit_jax.data.sources.tar_index.Window.read", errno.EIO, "input/output error"),
        ("convit_jax.data.sources.tar_index.Window.read", errno.EACCES, "permission denied"),
    ],
)
def test_faults_of_the_machine_while_indexing_are_told_from_mistakes(
    tmp_path, monkeypatch, where, code, fault
):
    name = write_samples(tmp_path / "x.tar", [0])

    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(where, fail)
    with pytest.raises(MachineError, match=rf"x\.tar: {fault}"):
        open_source(name)


class LocalBucket:
    """Stands for Google's storage: gs://bucket is a directory."""

    def __init__(self, root):
        self.root = root

    def local(self, path):
        return epath.Path(str(path).replace("gs://bucket", str(self.root)))

    def __getattr__(self, method):
        names = {"isdir": "is_dir"}
        return lambda path, *arguments: getattr(self.local(path), names.get(method, method))(
            *arguments
        )

    def listdir(self, path):
        return [entry.name for entry in self.local(path).iterdir()]

    def glob(self, path):
        matches = self.local(path).parent.glob(epath.Path(path).name)
        return [str(match).replace(str(self.root), "gs://bucket") for match in matches]


def test_shards_in_a_bucket_are_indexed_and_read_in_place(tmp_path, monkeypatch):
    (tmp_path / "classnames.txt").write_text("a\nb\n")
    for number in range(3):
        write_samples(tmp_path / "d" / f"x-{number}.tar", [number % 2] * 3)
    local = open_source(f"wds:{tmp_path}/d/x-{{0..2}}.tar")
    bucket = LocalBucket(tmp_path)
    backend = type(epath.Path("gs://bucket"))._backend
    monkeypatch.setattr(
        "etils.epath.gpath._GPath._backend",
        property(lambda self: bucket if self._uri_scheme == "gs" else backend.fget(self)),
    )
    for pattern in ("x-{0..2}.tar", "*.tar"):
        remote = open_source(f"wds:gs://bucket/d/{pattern}")
        assert remote.examples.shards[1] == "gs://bucket/d/x-1.tar"
        assert contents(remote) == contents(local)
        assert remote.class_names == ("a", "b")
        assert remote.examples.identity() == local.examples.identity()
    with pytest.raises(
        InputError, match=r"1 of 4 shards are missing, the first is gs://bucket/d/x-3"
    ):
        open_source("wds:gs://bucket/d/x-{0..3}.tar")
    with pytest.raises(InputError, match=r"did you mean 'gs://bucket/d/x-\{0..2\}.tar'"):
        open_source("wds:gs://bucket/d/y-{0..3}.tar")


def test_packed_names_are_the_names():
    names = ["a", "é", "caf\udce9", ""]
    assert list(PackedNames.pack([("", names)])) == names


# Patterns.


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("x.tar", ["x.tar"]),
        ("x-{08..11}", ["x-08", "x-09", "x-10", "x-11"]),
        ("x-{8..10}", ["x-8", "x-9", "x-10"]),
        ("{0..1}", ["0", "1"]),
        ("{000..01}", ["000", "001"]),
        ("{a,b}/{0..1}.tar", ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]),
        ("{a,}{b,c}", ["ab", "ac", "b", "c"]),
    ],
)
def test_braces_are_expanded_as_by_a_shell(pattern, expected):
    assert expand_braces(pattern) == expected


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("x-{0..3.tar", "its braces are not paired, or nested: expected"),
        ("x-0}.tar", "its braces are not paired"),
        ("{a,{0..1}}", "its braces are not paired, or nested"),
        ("{x}", r"\{x\}: expected a range \{0000..1023\} or a list"),
        ("{}", r"\{\}: expected a range"),
        ("{3..1}", r"\{3..1\}: expected the smaller number first"),
        ("{0..999999999}", r"\{0..999999999\} names 1,000,000,000 files, expected at most 100,000"),
        ("{0..999}{0..999}", "it names 1,000,000 files, expected at most 100,000"),
    ],
)
def test_wrong_braces_are_reported_in_a_sentence(pattern, message):
    with pytest.raises(InputError, match=message):
        expand_braces(pattern)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("", r"data 'wds:': expected wds:PATH/x-\{0000..1023\}.tar"),
        ("@/x-{0000..0005}.tar", "2 of 6 shards are missing, the first is @/x-0002.tar"),
        ("@/y-{0000..0002}.tar", "no file matches, did you mean '@/x-{0000..0005}.tar'?"),
        ("@/x_*.tar", "no file matches, did you mean '@/x-{0000..0005}.tar'?"),
        ("@/nme.tar", "no file matches, did you mean '@/name.tar'?"),
        ("@", "is a directory, did you mean '@/"),
        ("@/nowhere/x.tar", "there is no directory '@/nowhere'"),
        ("@/none/*.tar", "'@/none' has no .tar files"),
        ("@/none/*/x.tar", "there is no directory '@/none/*'"),
        ("@/name.tar/x.tar", "no file matches"),
        ("@/name.tar.gz", "members of compressed files cannot be read at random"),
        ("@/name.tgz", "members of compressed files cannot be read at random"),
        ("@/empty.tar", "no labelled images in 1 shard: they are empty; expected for each image"),
        ("@/text.tar", "the label of member a.png of @/text.tar is no integer; expected"),
        ("@/unlabelled.tar", "1 samples without a label are skipped, such as a of @/unlabelled"),
        ("@/negative.tar", "the label of member s1.png of @/negative.tar is -1, expected 0 to"),
        ("@/huge.tar", "is 999999999, expected 0 to 99,999, without a classnames.txt"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, pattern, message):
    for number in (0, 1, 4, 5):
        write_samples(tmp_path / f"x-{number:04}.tar", [0])
    write_samples(tmp_path / "name.tar", [0])
    write_samples(tmp_path / "negative.tar", [0, -1])
    write_samples(tmp_path / "huge.tar", [0, 999999999])
    write_tar(tmp_path / "empty.tar", [])
    write_tar(tmp_path / "text.tar", sample("a", "wasp"))
    write_tar(tmp_path / "unlabelled.tar", [("a.png", png(0))])
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError) as caught:
        open_source(f"wds:{pattern.replace('@', str(tmp_path))}")
    if pattern:
        assert message.replace("@", str(tmp_path)) in str(caught.value)
        assert str(caught.value).startswith(f"data 'wds:{pattern.replace('@', str(tmp_path))}': ")
    assert "\n" not in str(caught.value)


def test_a_file_with_a_wildcard_in_its_name_is_that_file(tmp_path):
    assert len(open_source(write_samples(tmp_path / "x[1].tar", [0, 1]))) == 2


def test_a_sheet_of_shards_is_drawn_by_the_command(tmp_path, run_python):
    name = write_samples(tmp_path / "x.tar", [0, 1] * 8)
    out = tmp_path / "sheet.png"
    completed = run_python(
        "-m", "convit_jax.preview", "--config=configs/digits.py", f"--out={out}", "--images=8",
        f"--config.data.train={name}", "--config.batch_size=8", "--config.data.eval=",
        "--config.data.holdout=0.2",
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr
    assert out.exists()
