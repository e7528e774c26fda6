"""Builders of what people have: odd images, class folders, records, prepared datasets."""

import io
import pathlib
import struct
import zlib

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from PIL import Image

WIDE = (24, 16)  # width and height of the images, which show that they were turned


def photograph(width=WIDE[0], height=WIDE[1], mode="RGB"):
    """A picture that no two of its eight orientations share."""
    y, x = np.mgrid[:height, :width]
    shades = (255 * np.stack([x / width, y / height, x * y / (width * height)], -1)).astype(
        np.uint8
    )
    return Image.fromarray(shades).convert(mode)


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def segment(marker, content):
    """A JPEG's segment: `marker` is the second byte of it."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def with_segments(jpeg, *segments):
    """A JPEG with segments before its own."""
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def chunk(kind, content):
    """A PNG's chunk."""
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def with_chunks(png, *chunks, last=False):
    """A PNG with chunks after its header, or before its end."""
    at = len(png) - 12 if last else 33
    return png[:at] + b"".join(chunks) + png[at:]


def entry(tag, kind, count, value, order="<"):
    """An entry of a TIFF directory; `value` is its four last bytes."""
    return struct.pack(f"{order}HHI", tag, kind, count) + value


def tiff_header(*entries, order="<", after=b""):
    """The metadata of EXIF without its heading."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    head = mark + struct.pack(f"{order}IH", 8, len(entries))
    return head + b"".join(entries) + bytes(4) + after


def orientation(value=6, order="<"):
    return entry(0x0112, 3, 1, struct.pack(f"{order}HH", value, 0), order)


def exif(*entries, order="<", after=b""):
    return b"Exif\0\0" + tiff_header(*entries, order=order, after=after)


def xmp(value=6):
    return f'<rdf:Description tiff:Orientation="{value}"/>'.encode()


def tfrecord(payloads):
    """A TFRecord file's bytes, its checksums left empty."""
    return b"".join(struct.pack("<QI", len(p), 0) + p + bytes(4) for p in payloads)


def write_array_record(path, payloads):
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for payload in payloads:
        writer.write(payload)
    writer.close()


def _field(number, content):
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value):
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def example(**features):
    """A serialised tf.train.Example of bytes, ints and floats, written by hand."""
    entries = b""
    for name, value in features.items():
        if isinstance(value, bytes):
            kind, content = 1, _field(1, value)
        elif isinstance(value, float):
            kind, content = 2, _field(1, struct.pack("<f", value))
        else:
            kind, content = 3, _field(1, _varint(value % 2**64))
        feature = _field(kind, content)
        entries += _field(1, _field(1, name.encode()) + _field(2, feature))
    return _field(1, entries)


def folder(root, classes, count=4, side=8, mode="L"):
    """ROOT/CLASS/N.png: each class a directory of noise; its name as a source."""
    rng = np.random.default_rng(0)
    bands = len(Image.new(mode, (1, 1)).getbands())
    for name in classes:
        directory = pathlib.Path(root, name)
        directory.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            shape = (side, side) if bands == 1 else (side, side, bands)
            pixels = rng.integers(0, 255, shape, dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(directory / f"{number}.png")
    return f"folder:{root}"


def prepared(directory, features, example, *, name="shapes", supervised=None, version="1.0.0",
             splits=("train", "test"), configs=(), count=6):  # fmt: skip
    """Prepares a dataset of TFDS in a directory, by code that TFDS then no longer knows.

    Args:
        directory: the data directory.
        features: a dictionary of TFDS's features.
        example: index → values.
        name, supervised, version, splits, configs, count: of the dataset.
    """

    def info(self):
        tree = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(builder=self, features=tree, supervised_keys=supervised)

    def generate(self, dl_manager):
        return {split: ((i, example(i)) for i in range(count)) for split in splits}

    attributes = {
        "VERSION": tfds.core.Version(version),
        "name": name,
        "_info": info,
        "_split_generators": generate,
        "_generate_examples": lambda self: iter(()),
        "__module__": __name__,
        "pkg_dir_path": pathlib.Path(directory),
    }
    bases = (tfds.core.GeneratorBasedBuilder,)
    kind = type(name.title(), bases, attributes, skip_registration=True)
    for config in configs or (None,):
        options = {} if config is None else {"config": tfds.core.BuilderConfig(name=config)}
        kind(data_dir=directory, file_format="array_record", **options).download_and_prepare()
    return pathlib.Path(directory)


def label(number, classes):
    """One label of some classes."""
    return int(number % classes)


def pixels(shade, channels=3, side=8):
    """uint8 [side, side, channels], all of one level."""
    return np.full((side, side, channels), shade, np.uint8)
