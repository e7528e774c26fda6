"""What a dataset of ImageNet's size costs to open, in each layout, with tiny images.

Each layout is measured in a process of its own, which prints a JSON object:

python -m convit_jax.benchmarks.scale LAYOUT DIRECTORY NUM_IMAGES
"""

import dataclasses
import io
import itertools
import json
import os
import pathlib
import pickle
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator

import numpy as np
from array_record.python import array_record_module
from PIL import Image

from convit_jax.benchmarks.timing import time_call
from convit_jax.benchmarks.worker_memory import memory_of_this_process
from convit_jax.data import EpochOrder, Source, TrainTransform, open_source, subset, train_batches
from convit_jax.data.sources import imagenet
from convit_jax.data.sources.records import (
    TFRECORD_FOOTER,
    TFRECORD_HEADER,
    ArrayRecords,
    Records,
    Span,
    TFExamples,
)
from convit_jax.data.sources.tf_example import message_class
from convit_jax.data.sources.tfrecord_index import open_tfrecords
from convit_jax.errors import RunError

_NUM_SHARDS = 1024
_BATCH_SIZE, _FRACTION = 1024, 0.1


@dataclasses.dataclass(frozen=True)
class ScaleCost:
    """What it costs to use a dataset.

    Attributes:
        layout: folder, wds, tfrecord or array_record.
        images: number of images.
        open_seconds: to open it for the first time, with its index.
        reopen_seconds: to open it again, with the index from the cache.
        batch_seconds: to read the first batch of 1,024 images in random order.
        subset_seconds: to choose a tenth of each class.
        megabytes: memory that all this took, at its peak.
        pickled_megabytes: what a worker process is sent, which workers share.
        find_seconds: what `find` takes to list a folder's files, for comparison; None for other
            layouts.
    """

    layout: str
    images: int
    open_seconds: float
    reopen_seconds: float
    batch_seconds: float
    subset_seconds: float
    megabytes: float
    pickled_megabytes: float
    find_seconds: float | None


def measure_scale(num_images: int) -> Iterator[ScaleCost]:
    """Make datasets of so many tiny images, in a temporary directory, and measure each.

    Raises:
        RunError: a measuring process failed.
    """
    for layout, make in _MAKERS.items():
        with tempfile.TemporaryDirectory(prefix="convit-jax-scale-") as directory:
            root = pathlib.Path(directory)
            make(root / "data", num_images)
            command = [sys.executable, "-m", "convit_jax.benchmarks.scale"]
            completed = subprocess.run(
                [*command, layout, directory, f"{num_images}"],
                env=os.environ | {"XDG_CACHE_HOME": f"{directory}/cache"},
                stdout=subprocess.PIPE,
                text=True,
                check=False,
            )
        if completed.returncode:
            raise RunError(f"measuring {layout} ended with code {completed.returncode}")
        yield ScaleCost(**json.loads(completed.stdout.splitlines()[-1]))


def _images() -> list[bytes]:
    """A tiny JPEG for each of ImageNet's classes."""
    files = []
    for label in range(imagenet.NUM_CLASSES):
        file = io.BytesIO()
        Image.new("RGB", (8, 8), (label % 256, label // 256, 0)).save(file, "JPEG")
        files.append(file.getvalue())
    return files


def _make_folder(root: pathlib.Path, num_images: int) -> None:
    """Write a directory for each class; its images are links to one file."""
    for label, image in enumerate(_images()):
        directory = root / f"n{label:08d}"
        directory.mkdir(parents=True)
        first = directory / f"n{label:08d}_0.JPEG"
        for number in range(label, num_images, imagenet.NUM_CLASSES):
            if number == label:
                first.write_bytes(image)
            else:
                os.link(first, directory / f"n{label:08d}_{number}.JPEG")


def _records(num_images: int) -> Iterator[bytes]:
    """Yield serialised tf.train.Examples with the features that TFDS has of ImageNet."""
    images, example_class = _images(), message_class("Example")
    for number in range(num_images):
        label = number % imagenet.NUM_CLASSES
        example = example_class()
        features = example.features.feature
        features["file_name"].bytes_list.value.append(f"n{label:08d}_{number}.JPEG".encode())
        features["image"].bytes_list.value.append(images[label])
        features["label"].int64_list.value.append(label)
        yield example.SerializeToString()


def _shards(root: pathlib.Path, num_images: int) -> list[Span]:
    """Return the shards of a dataset, with all their records."""
    num_shards = min(_NUM_SHARDS, num_images)
    sizes = np.diff(np.arange(num_shards + 1) * num_images // num_shards)
    return [Span(str(root / f"{i:05d}"), 0, int(size)) for i, size in enumerate(sizes)]


def _make_tfrecord(root: pathlib.Path, num_images: int) -> None:
    root.mkdir()
    records = _records(num_images)
    for shard in _shards(root, num_images):
        with pathlib.Path(shard.path).open("wb") as file:
            for record in itertools.islice(records, shard.stop):
                # With checksums of zero, which are not read.
                file.write(TFRECORD_HEADER.pack(len(record), 0) + record + bytes(TFRECORD_FOOTER))


def _make_array_record(root: pathlib.Path, num_images: int) -> None:
    root.mkdir()
    records = _records(num_images)
    for shard in _shards(root, num_images):
        writer = array_record_module.ArrayRecordWriter(shard.path, "group_size:1")
        for record in itertools.islice(records, shard.stop):
            writer.write(record)
        writer.close()


def _make_wds(root: pathlib.Path, num_images: int) -> None:
    """Write tar shards with an image and its label for each example."""
    root.mkdir()
    images, numbers = _images(), iter(range(num_images))
    for shard in _shards(root, num_images):
        with tarfile.open(f"{shard.path}.tar", "w", format=tarfile.USTAR_FORMAT) as file:
            for number in itertools.islice(numbers, shard.stop):
                label = number % imagenet.NUM_CLASSES
                for suffix, content in (("cls", f"{label}".encode()), ("jpg", images[label])):
                    member = tarfile.TarInfo(f"{number:08d}.{suffix}")
                    member.size = len(content)
                    file.addfile(member, io.BytesIO(content))


_MAKERS = {
    "folder": _make_folder,
    "wds": _make_wds,
    "tfrecord": _make_tfrecord,
    "array_record": _make_array_record,
}


def _open(layout: str, root: pathlib.Path, num_images: int) -> Source:
    spans = _shards(root, num_images)
    if layout == "folder":
        return open_source(f"folder:{root}")
    if layout == "wds":
        return open_source(f"wds:{root}/{{00000..{len(spans) - 1:05d}}}.tar")
    records: Records = ArrayRecords(tuple(spans))
    if layout == "tfrecord":
        records = open_tfrecords(spans, [span.stop for span in spans], layout)
    classes = tuple(map(str, range(imagenet.NUM_CLASSES)))
    return Source(layout, TFExamples(records, "image", "label", "file_name"), classes)


def main() -> None:
    """Use the dataset, and print what that cost."""
    layout, directory, num_images = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3])
    before = memory_of_this_process("VmRSS")

    def open_dataset() -> Source:
        return _open(layout, directory / "data", num_images)

    def read_batch() -> None:
        order = EpochOrder(len(source), min(_BATCH_SIZE, len(source)), seed=0)
        transform = TrainTransform((8, 8), 3)
        batches = train_batches(source, order, transform, start_step=0, num_steps=1)
        next(batches)

    def choose_subset() -> None:
        subset(source, fraction=_FRACTION, choice="first", classes=0, seed=0)

    def find_files() -> None:
        command = ["find", str(directory / "data"), "-type", "f"]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)

    find_seconds = time_call(find_files)[1] if layout == "folder" else None
    _, open_seconds = time_call(open_dataset)
    source, reopen_seconds = time_call(open_dataset)
    _, batch_seconds = time_call(read_batch)
    _, subset_seconds = time_call(choose_subset)
    cost = ScaleCost(
        layout=layout,
        images=len(source),
        open_seconds=open_seconds,
        reopen_seconds=reopen_seconds,
        batch_seconds=batch_seconds,
        subset_seconds=subset_seconds,
        megabytes=memory_of_this_process("VmHWM") - before,
        pickled_megabytes=len(pickle.dumps(source)) / 1e6,
        find_seconds=find_seconds,
    )
    print(json.dumps(dataclasses.asdict(cost)))


if __name__ == "__main__":
    main()
