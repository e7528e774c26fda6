"""Builders of test data: images with odd metadata, class folders, records, TFDS datasets."""

import io
import pathlib
import struct
import tarfile
import zlib

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from PIL import Image

WIDE = (24, 16)  # (width, height): not square, so that rotation shows


def photograph(width=WIDE[0], height=WIDE[1], mode="RGB"):
    """Return an image whose eight orientations all differ."""
    y, x = np.mgrid[:height, :width]
    shades = 255 * np.stack([x / width, y / height, x * y / (width * height)], -1)
    return Image.fromarray(shades.astype(np.uint8)).convert(mode)


def encode(image, image_format, **options):
    """Return the encoded image as bytes."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def segment(marker, content):
    """Return a JPEG segment; `marker` is its second byte."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def with_segments(jpeg, *segments):
    """Insert segments into a JPEG, before the existing ones."""
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def chunk(kind, content):
    """Return a PNG chunk."""
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def with_chunks(png, *chunks, last=False):
    """Insert chunks into a PNG, after the header or before the end chunk."""
    offset = len(png) - 12 if last else 33
    return png[:offset] + b"".join(chunks) + png[offset:]


def entry(tag, kind, count, value, order="<"):
    """Return an entry of a TIFF directory; `value` is its last four bytes."""
    return struct.pack(f"{order}HHI", tag, kind, count) + value


def tiff_header(*entries, order="<", after=b""):
    """Return EXIF metadata without the `Exif` identifier."""
    byte_order = b"II*\0" if order == "<" else b"MM\0*"
    header = byte_order + struct.pack(f"{order}IH", 8, len(entries))
    return header + b"".join(entries) + bytes(4) + after


def orientation(value=6, order="<"):
    return entry(0x0112, 3, 1, struct.pack(f"{order}HH", value, 0), order)


def exif(*entries, order="<", after=b""):
    return b"Exif\0\0" + tiff_header(*entries, order=order, after=after)


def xmp(value=6):
    return f'<rdf:Description tiff:Orientation="{value}"/>'.encode()


def tfrecord(payloads):
    """Return the contents of a TFRecord file, with checksums of zero."""
    return b"".join(struct.pack("<QI", len(p), 0) + p + bytes(4) for p in payloads)


def write_tar(path, members, tar_format=tarfile.PAX_FORMAT, **attributes):
    """Write a tar file of (name, content) or (name, TarInfo attributes) pairs; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            for key, value in (attributes | (content if isinstance(content, dict) else {})).items():
                setattr(info, key, value)
            info.size = 0 if isinstance(content, dict) else len(content)
            tar.addfile(info, None if isinstance(content, dict) else io.BytesIO(content))
    return path


def write_array_record(path, payloads):
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for payload in payloads:
        writer.write(payload)
    writer.close()


def _field(number, content):
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value):
    encoded = b""
    while value > 127:
        encoded += bytes([value & 127 | 128])
        value >>= 7
    return encoded + bytes([value])


def example(**features):
    """Serialise a tf.train.Example of bytes, ints and floats, without protobuf."""
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
    """Write noise to ROOT/CLASS/N.png; return the name of the source."""
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


def prepare_dataset(
    directory, features, example, *, name="shapes", supervised=None, version="1.0.0", configs=(),
    count=6, file_format="array_record", num_shards=None,
):  # fmt: skip
    """Prepare a TFDS dataset with a train and a test split, by a builder unknown to TFDS.

    Args:
        directory: the data directory.
        features: a dictionary of TFDS features.
        example: a function of an index: the example's values.
        name: the dataset's name.
        supervised: its `supervised_keys`.
        version: its version.
        configs: the names of its configs, if any.
        count: the number of examples in each split.
        file_format: the format of its files.
        num_shards: the number of files of each split; TFDS chooses it if None.
    """

    def info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=supervised
        )

    def generate(self, dl_manager):
        return {split: ((i, example(i)) for i in range(count)) for split in ("train", "test")}

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
    builder_class = type(name.title(), bases, attributes, skip_registration=True)
    for config in configs or (None,):
        options = {} if config is None else {"config": tfds.core.BuilderConfig(name=config)}
        builder = builder_class(data_dir=directory, file_format=file_format, **options)
        download_config = tfds.download.DownloadConfig(num_shards=num_shards)
        builder.download_and_prepare(download_config=download_config)


def solid_image(shade, channels=3, side=8):
    """Return uint8 [side, side, channels], all `shade`."""
    return np.full((side, side, channels), shade, np.uint8)
