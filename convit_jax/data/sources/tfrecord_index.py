"""Random access to TFRecord files through a cached index of record offsets.

TFDS datasets are mostly prepared as TFRecord, a format without an index. Building one reads twelve
bytes per record and leaves the files unchanged.
"""

import contextlib
import functools
import hashlib
import io
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from etils import epath

from convit_jax.data.sources.records import TFRECORD_FOOTER, TFRECORD_HEADER, Span, TFRecords
from convit_jax.errors import InputError, boundary, first_line
from convit_jax.system.cache import cache_directory

log = logging.getLogger(__name__)

# Files indexed in parallel: indexing waits for the disk or the network rather than computing.
_THREADS = 16


def open_tfrecords(spans: Sequence[Span], records_per_file: Sequence[int], name: str) -> TFRecords:
    """Open records of TFRecord files, with an index from the cache or built now.

    Args:
        spans: which records of which files.
        records_per_file: each file's number of records, according to TFDS.
        name: name of the data, for messages.

    Raises:
        InputError: a file is damaged or has another number of records.
    """
    keys = [str(number) for number in range(len(spans))]

    def is_valid(index: Mapping[str, np.ndarray]) -> bool:
        return all(
            offsets.dtype == np.int64
            and offsets.shape == (expected + 1,)
            and np.all(np.diff(offsets) > 0)
            for offsets, expected in zip(index.values(), records_per_file, strict=True)
        )

    with boundary(f"data '{name}'"):
        cache_name = f"tfrecord_index_{fingerprint(spans)}.npz"
        index = load_cached_arrays(cache_name, keys, is_valid)
        if index is None:
            if len(spans) > _THREADS:
                log.info("indexing %d TFRecord files of %s, once", len(spans), name)
            with ThreadPoolExecutor(_THREADS) as pool:
                built = pool.map(lambda span: record_offsets(span.path), spans)
                index = dict(zip(keys, built, strict=True))
            cache_arrays(cache_name, index)
    for span, offsets, expected in zip(spans, index.values(), records_per_file, strict=True):
        if len(offsets) - 1 != expected:
            raise InputError(
                f"data '{name}': {span.path} has {len(offsets) - 1} records, expected {expected}"
            )
    return TFRecords(tuple(spans), offsets=tuple(index.values()))


def record_offsets(path: str) -> np.ndarray:
    """Return where each record of a TFRecord file begins, and the end: int64 [num_records + 1].

    Raises:
        InputError: the file ends inside a record, or is not a TFRecord file.
    """
    offsets, position = [0], 0
    with epath.Path(path).open("rb") as file:
        size = file.seek(0, io.SEEK_END) or file.tell()
        while position < size:
            file.seek(position)
            header = file.read(TFRECORD_HEADER.size)
            if len(header) == TFRECORD_HEADER.size:
                length, _ = TFRECORD_HEADER.unpack(header)
                position += TFRECORD_HEADER.size + length + TFRECORD_FOOTER
            if len(header) < TFRECORD_HEADER.size or position > size:
                raise InputError(
                    f"{path} ends inside record {len(offsets) - 1}: it is damaged or was not "
                    "copied completely"
                )
            offsets.append(position)
    return np.asarray(offsets, np.int64)


def fingerprint(spans: Sequence[Span]) -> str:
    """Return a hash of the spans and of their files' sizes and modification times."""
    digest = hashlib.sha256()
    for span in spans:
        stat = epath.Path(span.path).stat()
        digest.update(f"{span} {stat.length} {stat.mtime}\n".encode())
    return digest.hexdigest()[:20]


def load_cached_arrays(
    name: str, keys: Sequence[str], is_valid: Callable[[dict[str, np.ndarray]], bool]
) -> dict[str, np.ndarray] | None:
    """Load arrays written by `cache_arrays`; return None if they are missing or unusable.

    Args:
        name: file name in the cache directory.
        keys: names of the arrays.
        is_valid: whether the loaded arrays are as expected.
    """
    try:
        with np.load(cache_directory() / name) as file:
            arrays = {key: file[key] for key in keys}
        if is_valid(arrays):
            return arrays
        problem = "its contents are not as expected"
    except FileNotFoundError:
        return None
    except Exception as error:  # a truncated or garbled file, or a directory without permission
        problem = first_line(error)
    log.warning("%s cannot be used and is rebuilt: %s", name, problem)
    return None


def cache_arrays(name: str, arrays: Mapping[str, Any]) -> None:
    """Write arrays to the cache directory; if that fails, warn and go on without a cache.

    Args:
        name: file name in the cache directory.
        arrays: the arrays by key.
    """
    path = cache_directory() / name
    temporary = path.with_suffix(f".{os.getpid()}.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(temporary, **arrays)
        temporary.replace(path)
    except OSError as error:
        _warn_once(f"nothing can be cached in {path.parent}: {first_line(error)}")
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@functools.cache
def _warn_once(message: str) -> None:
    log.warning(message)
