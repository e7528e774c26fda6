"""Random access to records in ArrayRecord and TFRecord files, and to image files.

These classes are cheap to import and to pickle: worker processes receive them and open the files
themselves.
"""

import abc
import dataclasses
import functools
import os
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_module
from etils import epath

from convit_jax.data.open_files import OpenFiles, max_open_files, open_descriptors, read_range
from convit_jax.data.sources import tf_example
from convit_jax.data.sources.packed_names import PackedNames

# A TFRecord consists of its length (8 bytes), a checksum (4), the payload and a checksum (4).
TFRECORD_HEADER, TFRECORD_FOOTER = struct.Struct("<QI"), 4


# The label of a record without one, as in the test splits of some TFDS datasets.
NO_LABEL = -1


@dataclasses.dataclass(frozen=True)
class Span:
    """Records `start` to `stop` - 1 of a file."""

    path: str
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Records(abc.ABC):
    """Serialised examples in spans of files, indexed consecutively."""

    spans: tuple[Span, ...]

    @abc.abstractmethod
    def __getitem__(self, index: int) -> bytes:
        """Read a record."""

    def parts(self, index: int) -> tuple[int, Callable[[int, int], bytes]]:
        """Return a record's size, and a function that reads it from a byte up to another."""
        record = self[index]
        return len(record), lambda start, stop: record[start:stop]

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([span.stop - span.start for span in self.spans])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _locate(self, index: int) -> tuple[int, int]:
        """Return the number of the span that holds a record, and the record's index in its file."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        span = self.spans[number]
        return number, span.stop - (int(self._ends[number]) - index)

    def describe(self, index: int) -> str:
        """Return the record's index in its file and the file's path, for messages."""
        number, position = self._locate(index)
        return f"record {position} of {self.spans[number].path}"

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields only: each process opens the files itself."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


@dataclasses.dataclass(frozen=True)
class ArrayRecords(Records):
    """Records of ArrayRecord files."""

    @functools.cached_property
    def _files(self) -> OpenFiles[Any]:
        capacity = max_open_files(len(self.spans))
        return OpenFiles(_open_array_record, lambda reader: reader.close(), capacity)

    def __getitem__(self, index: int) -> bytes:
        number, position = self._locate(index)
        with self._files.use(self.spans[number].path) as reader:
            return reader.read([position])[0]


def _open_array_record(path: str) -> Any:
    """Open a reader for random access, without read-ahead, which would be wasted."""
    options = {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 32768}
    return array_record_module.ArrayRecordReader(path, **options)


@dataclasses.dataclass(frozen=True, eq=False)
class TFRecords(Records):
    """Records of TFRecord files, located by an index.

    Attributes:
        offsets: for each span's file, int64 [number of records in the file + 1]: where each record
            begins, and the file's end.
    """

    offsets: tuple[np.ndarray, ...]

    @functools.cached_property
    def _files(self) -> OpenFiles[int]:
        return open_descriptors(len(self.spans))

    def __getitem__(self, index: int) -> bytes:
        size, read = self.parts(index)
        return read(0, size)

    def parts(self, index: int) -> tuple[int, Callable[[int, int], bytes]]:
        """Return a record's size, and a function that reads it from a byte up to another."""
        number, position = self._locate(index)
        begin, end = (int(offset) for offset in self.offsets[number][position : position + 2])
        begin, end = begin + TFRECORD_HEADER.size, end - TFRECORD_FOOTER
        path = self.spans[number].path

        def read(start: int, stop: int) -> bytes:
            content = read_range(self._files, path, begin + start, begin + stop)
            if len(content) < stop - start:
                missing = end - begin - start - len(content)
                raise ValueError(f"the file ends {missing} bytes before the end of the record")
            return content

        return end - begin, read


@dataclasses.dataclass(frozen=True, eq=False)
class TFExamples:
    """Labelled images in records of TFDS.

    Attributes:
        records: the serialised examples.
        image_key: key of the image feature.
        label_key: key of the label feature.
        name_key: key of the feature that holds an example's file name, or None.
        label_shape: () for one label per image, (num_classes,) for multi-hot labels, where an image
            may have several labels or none.
    """

    records: Records
    image_key: str
    label_key: str
    name_key: str | None = None
    label_shape: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    def identity(self) -> str:
        """Return a string that identifies these examples, wherever a host stores them."""
        spans = self.records.spans
        return "\0".join(f"{os.path.basename(s.path)}:{s.start}:{s.stop}" for s in spans)  # noqa: PTH119

    def __getitem__(self, index: int) -> tuple[bytes, int | np.ndarray]:
        """Return the encoded image and its label: an int, or int32 [num_classes] if multi-hot.

        Raises:
            ValueError: the record lacks these features, or they have other types.
        """
        record = self.records[index]
        image, label = tf_example.parse(record, self.image_key, self.label_key)
        if not isinstance(image, bytes):
            raise ValueError(f"no encoded image '{self.image_key}' in the record")
        if self.label_shape:
            return image, self._multi_hot(tf_example.parse_ints(record, self.label_key))
        if not isinstance(label, int):
            raise ValueError(f"no label '{self.label_key}' in the record")
        return image, label

    def _multi_hot(self, labels: Sequence[int]) -> np.ndarray:
        """Return int32 [num_classes]: 1 for each of the labels, 0 elsewhere."""
        (num_classes,) = self.label_shape
        if labels and not 0 <= min(labels) <= max(labels) < num_classes:
            raise ValueError(f"its labels are {labels}, expected 0 to {num_classes - 1}")
        multi_hot = np.zeros(num_classes, np.int32)
        multi_hot[labels] = 1
        return multi_hot

    def name_and_label(self, index: int) -> tuple[bytes, int]:
        """Return the file name (b"" without a `name_key`) and the label, which subsets need."""
        keys = (self.label_key, *([self.name_key] if self.name_key else []))
        label, *names = tf_example.parse_parts(*self.records.parts(index), *keys)
        name = names[0] if names and isinstance(names[0], bytes) else b""
        return name, label if isinstance(label, int) else NO_LABEL

    def describe(self, index: int) -> str:
        """Return where the record is, without reading it: it may be damaged."""
        return self.records.describe(index)


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFiles:
    """Labelled image files.

    Attributes:
        root: the directory that holds the class directories.
        names: paths relative to the root, beginning with the class directory; sorted within each
            class.
        labels: int32 [number of images].
    """

    root: str
    names: PackedNames
    labels: np.ndarray

    label_shape = ()

    def __len__(self) -> int:
        return len(self.names)

    def identity(self) -> bytes:
        """Return bytes that identify these examples, wherever a host stores them."""
        return self.names.content.tobytes()

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        """Return the encoded image and its label."""
        path, label = self.describe(index), int(self.labels[index])
        if "://" in path:
            return epath.Path(path).read_bytes(), label
        with open(path, "rb") as file:  # noqa: PTH123  (ten times as fast as a Path object)
            return file.read(), label

    def describe(self, index: int) -> str:
        """Return the file's path."""
        return f"{self.root}/{self.names[index]}"
