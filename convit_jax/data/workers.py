"""Worker processes that read rows: small, quick to start, and gone when their parent is.

They are fresh interpreters (nothing forked from a process that uses JAX) that import what reading
needs and neither JAX nor TensorFlow. Grain's own workers would: importing Grain imports JAX.
"""

import contextlib
import os
import secrets
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import parent_process, resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np

from convit_jax.data.reading import Row, RowReader, RowsRead
from convit_jax.errors import MachineError, RunError, machine_fault

# Rows that a worker is handed at once: whole blocks of repeated views (`order.views_layout`), and
# enough of them that handing over costs nothing.
ROWS_AT_ONCE = 48


class _Worker(SpawnProcess):
    """A process that does not import the program that starts it again."""

    @staticmethod
    def _Popen(process: SpawnProcess) -> Any:  # noqa: N802  (multiprocessing's name)
        # A signal to the whole group is the parent's to answer: the worker is born deaf to it.
        with _hidden_main(), _held_back(signal.SIGTERM, signal.SIGINT):
            return SpawnProcess._Popen(process)


class _Context(SpawnContext):
    Process = _Worker


_STARTING = threading.Lock()


@contextlib.contextmanager
def _hidden_main() -> Iterator[None]:
    """Keeps from multiprocessing which program this is: a command may import JAX at its top."""
    main = sys.modules["__main__"]
    with _STARTING:
        hidden = {name: main.__dict__.pop(name, None) for name in ("__spec__", "__file__")}
        main.__spec__ = None
        try:
            yield
        finally:
            main.__dict__.update({k: v for k, v in hidden.items() if v or k == "__spec__"})


@contextlib.contextmanager
def _held_back(*signals: signal.Signals) -> Iterator[None]:
    """Signals wait; a process that is started meanwhile has them blocked for good."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class WorkerPool:
    """Processes that share the reading of a batch; for use in a `with` statement."""

    def __init__(self, reader: RowReader, num_workers: int) -> None:
        """Starts the processes, each with a copy of the reader."""
        self._shape = reader.image_shape
        self._pool = ProcessPoolExecutor(
            num_workers,
            mp_context=_Context(),
            initializer=_start,
            initargs=(reader,),
        )

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def read(self, rows: Sequence[Row]) -> tuple[np.ndarray, RowsRead]:
        """Pixels, uint8 [rows, H, W, channels], and the rest.

        Raises:
            RunError: a worker process died, or what `RowReader.read` raises.
        """
        shape = (len(rows), *self._shape)
        with _starting_told():
            # The workers write where this process reads: pixels do not travel through pipes.
            memory = _new_memory(int(np.prod(shape)))
        try:
            with _starting_told():
                futures = [
                    self._pool.submit(_read_into, memory.name, first, rows[first:][:ROWS_AT_ONCE])
                    for first in range(0, len(rows), ROWS_AT_ONCE)
                ]
            parts = [future.result() for future in futures]
            images = np.ndarray(shape, np.uint8, memory.buf).copy()
        except BrokenProcessPool as error:
            raise RunError(
                "a process that reads data was killed, probably for want of memory, or of shared "
                "memory (Docker's --shm-size): try a smaller config.data.num_workers or "
                "config.data.prefetch_batches"
            ) from error
        finally:
            memory.close()
            memory.unlink()
        return images, RowsRead(
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.mask for part in parts]),
            tuple(broken for part in parts for broken in part.broken),
        )


def _new_memory(size: int) -> SharedMemory:
    """Shared memory that is gone when this process is, however it ends.

    Python has a process that removes what others leave. It is told of a segment once that is there;
    who is killed in between would leave a batch in memory until the machine is restarted. So here
    it is told before.
    """
    name = f"convit_jax_{secrets.token_hex(8)}"
    resource_tracker.register(f"/{name}", "shared_memory")
    try:
        return SharedMemory(name, create=True, size=size)
    except OSError:
        # It may have been told so already: what is not known cannot be taken back.
        resource_tracker.register(f"/{name}", "shared_memory")
        resource_tracker.unregister(f"/{name}", "shared_memory")
        raise


@contextlib.contextmanager
def _starting_told() -> Iterator[None]:
    """Raises MachineError where the machine has no process or shared memory to give."""
    try:
        yield
    except OSError as error:
        fault = machine_fault(error) or error.strerror or "the system refused"
        raise MachineError(
            f"a process that reads data cannot be started: {fault}; a smaller "
            "config.data.num_workers needs less"
        ) from error


_reader: RowReader


def _start(reader: RowReader) -> None:
    global _reader
    _reader = reader
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed cannot tell its workers to stop."""
    parent_process().join()
    os._exit(1)


def _read_into(memory_name: str, first: int, rows: Sequence[Row]) -> RowsRead:
    """Reads rows into a batch's shared memory, from its row `first` on."""
    memory = SharedMemory(memory_name)
    try:
        shape = (len(rows), *_reader.image_shape)
        offset = first * int(np.prod(_reader.image_shape))
        return _reader.read(rows, np.ndarray(shape, np.uint8, memory.buf, offset))
    finally:
        memory.close()
