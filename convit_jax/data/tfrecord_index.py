"""Random access to TFRecord files: an index of where each record begins, made once and kept.

TFDS data are mostly prepared as TFRecord, which has no index of its own. Finding one reads twelve
bytes a record; the files stay as they are.
"""

import hashlib
import io
import logging
import os
import pathlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from etils import epath

from convit_jax.cache import cache_directory
from convit_jax.data.records import TFRECORD_FOOTER, TFRECORD_HEADER, Span, TFRecords
from convit_jax.errors import InputError

log = logging.getLogger(__name__)

# Files that are indexed at once: it is waiting for a disk or a network, not computing.
_THREADS = 16


def open_tfrecords(spans: Sequence[Span], records_in_file: Sequence[int], name: str) -> TFRecords:
    """Records of TFRecord files, with their index from the cache or made now.

    Args:
        spans: which records of which files.
        records_in_file: how many each file holds, as TFDS has it.
        name: the data's, for messages.

    Raises:
        InputError: a file is damaged or holds another number of records.
    """
    cache = cache_directory() / f"tfrecord_index_{fingerprint(spans)}.npz"
    if cache.exists():
        with np.load(cache) as kept:
            offsets = [kept[str(number)] for number in range(len(spans))]
    else:
        if len(spans) > _THREADS:
            log.info("indexing %d TFRecord files of %s, once", len(spans), name)
        with ThreadPoolExecutor(_THREADS) as pool:
            offsets = list(pool.map(lambda span: record_offsets(span.path), spans))
        keep_arrays(cache, **{str(number): found for number, found in enumerate(offsets)})
    for span, found, expected in zip(spans, offsets, records_in_file, strict=True):
        if len(found) - 1 != expected:
            raise InputError(
                f"data '{name}': {span.path} holds {len(found) - 1} records, expected {expected}"
            )
    return TFRecords(tuple(spans), offsets=tuple(offsets))


def record_offsets(path: str) -> np.ndarray:
    """Where each record of a TFRecord file begins, and where the last ends: int64 [records + 1].

    Raises:
        InputError: the file ends inside a record, or is no TFRecord file.
    """
    begins, position = [0], 0
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
                    f"{path} ends inside record {len(begins) - 1}: it is damaged or was not "
                    "copied to its end"
                )
            begins.append(position)
    return np.asarray(begins, np.int64)


def fingerprint(spans: Sequence[Span]) -> str:
    """Changes when a file does."""
    digest = hashlib.sha256()
    for span in spans:
        stat = epath.Path(span.path).stat()
        digest.update(f"{span} {stat.length} {stat.mtime}\n".encode())
    return digest.hexdigest()[:20]


def keep_arrays(cache: pathlib.Path, **arrays: np.ndarray) -> None:
    """Writes what was found out; where it cannot be kept it is found out again next time."""
    unfinished = cache.with_suffix(f".{os.getpid()}.npz")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.savez(unfinished, **arrays)
        unfinished.replace(cache)
    except OSError as error:
        log.warning("%s is not kept: %s", cache.name, error)
