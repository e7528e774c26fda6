"""Random access to TFRecord files: an index of where each record begins, made once and kept.

TFDS data are mostly prepared as TFRecord, which has no index of its own. Finding one reads twelve
bytes a record; the files stay as they are.
"""

import contextlib
import functools
import hashlib
import io
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from etils import epath

from convit_jax.data.sources.records import TFRECORD_FOOTER, TFRECORD_HEADER, Span, TFRecords
from convit_jax.errors import InputError, boundary, first_line
from convit_jax.system.cache import cache_directory

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
    names = [str(number) for number in range(len(spans))]

    def is_index(kept: dict[str, np.ndarray]) -> bool:
        return all(
            index.dtype == np.int64
            and index.shape == (expected + 1,)
            and np.all(np.diff(index) > 0)
            for index, expected in zip(kept.values(), records_in_file, strict=True)
        )

    with boundary(f"data '{name}'"):
        cache = f"tfrecord_index_{fingerprint(spans)}.npz"
        kept = kept_arrays(cache, names, is_index)
        if kept is None:
            if len(spans) > _THREADS:
                log.info("indexing %d TFRecord files of %s, once", len(spans), name)
            with ThreadPoolExecutor(_THREADS) as pool:
                found = pool.map(lambda span: record_offsets(span.path), spans)
                kept = dict(zip(names, found, strict=True))
            keep_arrays(cache, **kept)
    offsets = list(kept.values())
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


def kept_arrays(
    name: str, arrays: Sequence[str], is_sound: Callable[[dict[str, np.ndarray]], bool]
) -> dict[str, np.ndarray] | None:
    """What `keep_arrays` wrote; None where it did not, or where what there is, is no good.

    Args:
        name: of the file.
        arrays: their names.
        is_sound: whether they are what they should be.
    """
    try:
        with np.load(cache_directory() / name) as kept:
            found = {array: kept[array] for array in arrays}
        if is_sound(found):
            return found
        problem = "it holds something else"
    except FileNotFoundError:
        return None
    except Exception as error:  # a file cut short or garbled, or a directory that is closed
        problem = first_line(error)
    log.warning("%s cannot be used and is made anew: %s", name, problem)
    return None


def keep_arrays(name: str, **arrays: np.ndarray) -> None:
    """Writes what was found out; where it cannot be kept it is found out again next time."""
    cache = cache_directory() / name
    unfinished = cache.with_suffix(f".{os.getpid()}.npz")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.savez(unfinished, **arrays)
        unfinished.replace(cache)
    except OSError as error:
        _warn_once(f"nothing is kept in {cache.parent}: {first_line(error)}")
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


@functools.cache
def _warn_once(message: str) -> None:
    log.warning(message)
