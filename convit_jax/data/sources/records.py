"""Where the bytes lie: random access to records in ArrayRecord, TFRecord and image files.

Everything here is light to import and to pickle: worker processes are handed these objects and
read by themselves.
"""

import dataclasses
import functools
import os
import struct
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from array_record.python import array_record_module
from etils import epath

from convit_jax.data.open_files import OpenFiles, max_open_files
from convit_jax.data.sources import tf_example

# A TFRecord is its length (8 bytes), a checksum (4), the payload and a checksum (4).
TFRECORD_HEADER, TFRECORD_FOOTER = struct.Struct("<QI"), 4


# Of a record whose label is missing; test splits of some datasets have it, too.
NO_LABEL = -1


class Records(Protocol):
    """Serialised examples by their index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> bytes: ...

    def describe(self, index: int) -> str:
        """Where a record lies, for messages."""
        ...


@dataclasses.dataclass(frozen=True)
class Span:
    """Records `start` to `stop` - 1 of a file."""

    path: str
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class _Spans:
    """Records that lie in spans of files, one after another."""

    spans: tuple[Span, ...]

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([span.stop - span.start for span in self.spans])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _locate(self, index: int) -> tuple[int, int]:
        """Number of the span that holds a record, and the record's number in its file."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        span = self.spans[number]
        return number, span.stop - (int(self._ends[number]) - index)

    def describe(self, index: int) -> str:
        """The file, and the record's number in it."""
        number, position = self._locate(index)
        return f"record {position} of {self.spans[number].path}"


@dataclasses.dataclass(frozen=True)
class ArrayRecords(_Spans):
    """Records of ArrayRecord files."""

    @functools.cached_property
    def _files(self) -> OpenFiles[Any]:
        capacity = max_open_files(len(self.spans))
        return OpenFiles(_open_array_record, lambda reader: reader.close(), capacity)

    def __getitem__(self, index: int) -> bytes:
        number, position = self._locate(index)
        with self._files.use(self.spans[number].path) as reader:
            return reader.read([position])[0]

    def __getstate__(self) -> dict[str, Sequence[Span]]:
        return {"spans": self.spans}  # a process opens the files for itself


def _open_array_record(path: str) -> Any:
    """A reader for access at random: what it read ahead would not be asked for."""
    options = {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 32768}
    return array_record_module.ArrayRecordReader(path, **options)


@dataclasses.dataclass(frozen=True, eq=False)
class TFRecords(_Spans):
    """Records of TFRecord files, found by an index of where each begins.

    Attributes:
        offsets: for each span's file, int64 [records of the file + 1]: where each record begins,
            and the file's end.
    """

    offsets: tuple[np.ndarray, ...]

    @functools.cached_property
    def _files(self) -> OpenFiles[int]:
        capacity = max_open_files(len(self.spans))
        return OpenFiles(lambda path: os.open(path, os.O_RDONLY), os.close, capacity)

    def __getitem__(self, index: int) -> bytes:
        number, position = self._locate(index)
        begin, end = (int(offset) for offset in self.offsets[number][position : position + 2])
        begin, end = begin + TFRECORD_HEADER.size, end - TFRECORD_FOOTER
        path = self.spans[number].path
        if "://" in path:
            with epath.Path(path).open("rb") as file:
                file.seek(begin)
                record = file.read(end - begin)
        else:
            with self._files.use(path) as descriptor:
                record = os.pread(descriptor, end - begin, begin)
        if len(record) < end - begin:
            raise ValueError(f"the file ends {end - begin - len(record)} bytes before its end")
        return record

    def __getstate__(self) -> dict[str, Sequence[Span | np.ndarray]]:
        return {"spans": self.spans, "offsets": self.offsets}


@dataclasses.dataclass(frozen=True, eq=False)
class TFExamples:
    """Labelled images in records of TFDS.

    Attributes:
        records: the serialised examples.
        image_key, label_key: what the two features are called.
        name_key: the feature that holds an example's file name, if there is one.
        classes: 0 where an image has one label; where it may have several or none, how many
            classes there are.
    """

    records: Records
    image_key: str
    label_key: str
    name_key: str | None = None
    classes: int = 0

    @property
    def label_shape(self) -> tuple[int, ...]:
        """() for labels, (classes,) for marks of 0 and 1."""
        return (self.classes,) if self.classes else ()

    def __len__(self) -> int:
        return len(self.records)

    def identity(self) -> str:
        """What tells these examples from others, wherever a host keeps them."""
        spans = self.records.spans
        return "\0".join(f"{os.path.basename(s.path)}:{s.start}:{s.stop}" for s in spans)  # noqa: PTH119

    def __getitem__(self, index: int) -> tuple[bytes, int | np.ndarray]:
        """The encoded image and its label, or its marks.

        Raises:
            ValueError: the record has no such features, or they hold something else.
        """
        record = self.records[index]
        image, label = tf_example.parse(record, self.image_key, self.label_key)
        if not isinstance(image, bytes):
            raise ValueError(f"no encoded image '{self.image_key}' in the record")
        if self.classes:
            label = np.zeros(self.classes, np.int32)
            labels = tf_example.parse_list(record, self.label_key)
            if labels and not 0 <= min(labels) <= max(labels) < self.classes:
                raise ValueError(f"its labels are {labels}, expected 0 to {self.classes - 1}")
            label[labels] = 1
        elif not isinstance(label, int):
            raise ValueError(f"no label '{self.label_key}' in the record")
        return image, label

    def name_and_label(self, index: int) -> tuple[str, int]:
        """What subsets are chosen by; the name is empty where the data have none."""
        keys = (self.label_key, *([self.name_key] if self.name_key else []))
        label, *name = tf_example.parse(self.records[index], *keys)
        named = name[0].decode(errors="replace") if name and isinstance(name[0], bytes) else ""
        return named, label if isinstance(label, int) else NO_LABEL

    def describe(self, index: int) -> str:
        """Where the record lies: said of records that cannot be read, so nothing is read for it."""
        return self.records.describe(index)


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFiles:
    """Labelled images in files of their own.

    Attributes:
        root: the directory above the class directories.
        names: paths below the root, class directory first, sorted.
        labels: int32, one for each.
    """

    root: str
    names: tuple[str, ...]
    labels: np.ndarray

    label_shape = ()

    def __len__(self) -> int:
        return len(self.names)

    def identity(self) -> str:
        """What tells these examples from others, wherever a host keeps them."""
        return "\0".join(self.names)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        """The encoded image and its label."""
        path = f"{self.root}/{self.names[index]}"
        if "://" in path:
            return epath.Path(path).read_bytes(), int(self.labels[index])
        with open(path, "rb") as file:  # noqa: PTH123  (a tenth of the time of a path object's)
            return file.read(), int(self.labels[index])

    def name_and_label(self, index: int) -> tuple[str, int]:
        """What subsets are chosen by."""
        return self.names[index], int(self.labels[index])

    def describe(self, index: int) -> str:
        """The file's path."""
        return f"{self.root}/{self.names[index]}"
