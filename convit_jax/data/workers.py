"""Worker processes that read rows: small, quick to start, and terminated with their parent.

They are spawned, not forked from a process that uses JAX, and import what reading needs but neither
JAX nor TensorFlow. Grain's own workers would import JAX, since importing Grain does.
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
from multiprocessing.process import BaseProcess
from multiprocessing.shared_memory import SharedMemory
from typing import Any, Self

import numpy as np

from convit_jax.data.reading import ReadResult, Row, RowReader
from convit_jax.errors import MachineError, RunError, machine_fault

# Rows per task of a worker: whole blocks of repeated views (`order.views_layout`), and enough of
# them that the cost of communication is negligible.
ROWS_PER_TASK = 48


class _Worker(SpawnProcess):
    """A process that does not import the parent's main module."""

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Any:  # noqa: N802  (multiprocessing's name)
        # A signal to the whole process group is handled by the parent: workers start with it
        # blocked.
        with _main_module_hidden(), _signals_blocked(signal.SIGTERM, signal.SIGINT):
            return SpawnProcess._Popen(process_obj)


class _Context(SpawnContext):
    Process = _Worker


_MAIN_MODULE_LOCK = threading.Lock()


@contextlib.contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Hide the main module from multiprocessing: it may import JAX at its top."""
    main = sys.modules["__main__"]
    with _MAIN_MODULE_LOCK:
        hidden = {name: main.__dict__.pop(name, None) for name in ("__spec__", "__file__")}
        main.__spec__ = None
        try:
            yield
        finally:
            main.__dict__.update({k: v for k, v in hidden.items() if v or k == "__spec__"})


@contextlib.contextmanager
def _signals_blocked(*signals: signal.Signals) -> Iterator[None]:
    """Block signals in this thread; a process started meanwhile keeps them blocked."""
    previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)


class WorkerPool:
    """Processes that share the reading of a batch; for use in a `with` statement."""

    def __init__(self, reader: RowReader, num_workers: int) -> None:
        """Start the processes, each with a copy of the reader."""
        self._shape = reader.image_shape
        self._pool = ProcessPoolExecutor(
            num_workers, mp_context=_Context(), initializer=_initialise_worker, initargs=(reader,)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def read(self, rows: Sequence[Row]) -> tuple[np.ndarray, ReadResult]:
        """Return the pixels, uint8 [rows, H, W, channels], and the rest of `RowReader.read`.

        Raises:
            RunError: a worker process died, or what `RowReader.read` raises.
        """
        shape = (len(rows), *self._shape)
        with _reporting_start_failures():
            # Workers write the pixels into shared memory instead of sending them through pipes.
            memory = _create_shared_memory(int(np.prod(shape)))
        try:
            with _reporting_start_failures():
                futures = [
                    self._pool.submit(_read_into, memory.name, first, rows[first:][:ROWS_PER_TASK])
                    for first in range(0, len(rows), ROWS_PER_TASK)
                ]
            results = [future.result() for future in futures]
            images = np.ndarray(shape, np.uint8, memory.buf).copy()
        except BrokenProcessPool as error:
            raise RunError(
                "a process that reads data was killed, probably because memory or shared memory "
                "(Docker's --shm-size) ran out: try a smaller config.data.num_workers or "
                "config.data.prefetch_batches"
            ) from error
        finally:
            memory.close()
            memory.unlink()
        return images, ReadResult(
            np.concatenate([result.labels for result in results]),
            np.concatenate([result.mask for result in results]),
            tuple(broken for result in results for broken in result.broken),
        )


def _create_shared_memory(size: int) -> SharedMemory:
    """Create shared memory that is removed when this process ends, even if it is killed.

    Python's resource tracker process removes what other processes leave behind. Normally a segment
    is registered with it after it is created; a process killed in between would leave a batch in
    memory until the machine is restarted. So here the segment is registered first.
    """
    name = f"convit_jax_{secrets.token_hex(8)}"
    resource_tracker.register(f"/{name}", "shared_memory")
    try:
        return SharedMemory(name, create=True, size=size)
    except OSError:
        # Python may have unregistered the name already, and the tracker complains about unknown
        # names.
        resource_tracker.register(f"/{name}", "shared_memory")
        resource_tracker.unregister(f"/{name}", "shared_memory")
        raise


@contextlib.contextmanager
def _reporting_start_failures() -> Iterator[None]:
    """Raise MachineError if the machine cannot provide a process or shared memory."""
    try:
        yield
    except OSError as error:
        fault = machine_fault(error) or error.strerror or "the system refused"
        raise MachineError(
            f"a process that reads data cannot be started: {fault}; a smaller "
            "config.data.num_workers needs less"
        ) from error


_reader: RowReader


def _initialise_worker(reader: RowReader) -> None:
    global _reader
    _reader = reader
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Wait for the parent to end, then exit: a parent that was killed cannot stop its workers."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _read_into(memory_name: str, first: int, rows: Sequence[Row]) -> ReadResult:
    """Read rows into a batch's shared memory, starting at its row `first`."""
    memory = SharedMemory(memory_name)
    try:
        shape = (len(rows), *_reader.image_shape)
        offset = first * int(np.prod(_reader.image_shape))
        return _reader.read(rows, np.ndarray(shape, np.uint8, memory.buf, offset))
    finally:
        memory.close()
