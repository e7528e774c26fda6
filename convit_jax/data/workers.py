"""Worker processes that read rows: small, quick to start, and terminated with their parent.

They are spawned, not forked from a process that uses JAX, and import what reading needs but neither
JAX nor TensorFlow. Grain's own workers would import JAX, since importing Grain does.
"""

import contextlib
import functools
import itertools
import math
import os
import pickle
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import parent_process, resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.process import BaseProcess
from multiprocessing.shared_memory import SharedMemory
from typing import Any, Self

import numpy as np

from convit_jax.data.reading import ReadResult, Row, RowReader, positions_by_example
from convit_jax.errors import MachineError, RunError, machine_fault
from convit_jax.system.freed_memory import keep_freed_memory

# Rows per task of a worker, at least: enough that the cost of communication is negligible.
ROWS_PER_TASK = 48
# Readers that a worker keeps open: of the training batches, an evaluation and the attention log.
_READERS_KEPT = 3
# Segments of shared memory that it keeps open, one for each batch that is read at a time.
_SEGMENTS_KEPT = 16


# A reader in shared memory: the segment's name, and the sizes of its pickle and of its buffers.
_SharedReader = tuple[str, tuple[int, ...]]

ReadRows = Callable[[Sequence[Row]], tuple[np.ndarray, ReadResult]]


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
    """Processes that share the reading of batches; for use in a `with` statement.

    One pool serves several readers: the training batches, the evaluations, the attention log. The
    shared memory into which workers write pixels is reused from batch to batch, since the pages of
    new memory cost more time than writing them.
    """

    def __init__(self, num_workers: int) -> None:
        """Start the processes when the first batch is read."""
        self._pool = ProcessPoolExecutor(
            num_workers, mp_context=_Context(), initializer=_initialise_worker
        )
        self._unused: list[SharedMemory] = []
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._pool.shutdown(wait=True, cancel_futures=True)
        while self._unused:
            _remove(self._unused.pop())

    @contextlib.contextmanager
    def reading(self, reader: RowReader) -> Iterator[ReadRows]:
        """Provide a function that reads rows by a reader.

        The function returns the pixels, uint8 [rows, H, W, channels], and the rest of
        `RowReader.read`. It raises RunError if a worker process died, and what `RowReader.read`
        raises.
        """
        with _reporting_start_failures():
            memory, sizes = _share(reader)
        try:
            yield functools.partial(self._read, reader.image_shape, (memory.name, sizes))
        finally:
            _remove(memory)

    def _read(
        self, image_shape: tuple[int, ...], reader: _SharedReader, rows: Sequence[Row]
    ) -> tuple[np.ndarray, ReadResult]:
        shape = (len(rows), *image_shape)
        with _reporting_start_failures(), self._batch_memory(math.prod(shape)) as memory:
            tasks = _divide(rows)
            try:
                futures = [
                    self._pool.submit(
                        _read_into, reader, memory.name, shape, task, [rows[i] for i in task]
                    )
                    for task in tasks
                ]
                results = [future.result() for future in futures]
            except BrokenProcessPool as error:
                raise RunError(
                    "a process that reads data was killed, probably because memory or shared "
                    "memory (Docker's --shm-size) ran out: try a smaller config.data.num_workers "
                    "or config.data.prefetch_batches"
                ) from error
            images = np.ndarray(shape, np.uint8, memory.buf).copy()
        labels = np.empty((len(rows), *results[0].labels.shape[1:]), np.int32)
        mask = np.empty(len(rows), np.float32)
        for task, result in zip(tasks, results, strict=True):
            labels[task], mask[task] = result.labels, result.mask
        broken = tuple(image for result in results for image in result.broken)
        return images, ReadResult(labels, mask, broken)

    @contextlib.contextmanager
    def _batch_memory(self, size: int) -> Iterator[SharedMemory]:
        """Provide shared memory of at least a size, which is kept for the next batch."""
        memory = None
        for unused in list(self._unused):
            if unused.size >= size:
                with contextlib.suppress(ValueError):  # another thread has taken it
                    self._unused.remove(unused)
                    memory = unused
                    break
        memory = memory or _create_shared_memory(size)
        try:
            yield memory
        except BaseException:
            _remove(memory)  # workers may still write into it
            raise
        if self._closed:
            _remove(memory)
        else:
            self._unused.append(memory)


def _divide(rows: Sequence[Row]) -> list[list[int]]:
    """Divide the rows of a batch into tasks, all views of an example in one.

    Returns:
        The positions of each task's rows.
    """
    tasks: list[list[int]] = []
    for positions in positions_by_example(rows).values():
        if not tasks or len(tasks[-1]) >= ROWS_PER_TASK:
            tasks.append([])
        tasks[-1] += positions
    return tasks


def _share(reader: RowReader) -> tuple[SharedMemory, tuple[int, ...]]:
    """Write a reader into shared memory; its arrays are not copied by the workers."""
    buffers: list[pickle.PickleBuffer] = []
    content = pickle.dumps(reader, protocol=5, buffer_callback=buffers.append)
    parts = [memoryview(content), *(buffer.raw() for buffer in buffers)]
    sizes = tuple(map(len, parts))
    memory = _create_shared_memory(sum(map(_aligned, sizes)))
    for part, target in zip(parts, _split(memory, sizes), strict=True):
        target[:] = part
    return memory, sizes


def _split(memory: SharedMemory, sizes: Sequence[int]) -> Iterator[memoryview]:
    """Yield the parts of shared memory that hold one buffer after another."""
    assert memory.buf is not None
    starts = itertools.accumulate(map(_aligned, sizes), initial=0)
    for start, size in zip(starts, sizes, strict=False):
        yield memory.buf[start : start + size]


def _aligned(size: int) -> int:
    return -(-size // 64) * 64  # arrays begin at multiples of a cache line


def _remove(memory: SharedMemory) -> None:
    memory.close()
    memory.unlink()


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


def _initialise_worker() -> None:
    keep_freed_memory()
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Wait for the parent to end, then exit: a parent that was killed cannot stop its workers."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@functools.lru_cache(_READERS_KEPT)
def _attach_reader(name: str, sizes: tuple[int, ...]) -> tuple[SharedMemory, RowReader]:
    """Return a worker's reader, whose arrays lie in the shared memory: it is released first."""
    memory = SharedMemory(name)
    content, *buffers = _split(memory, sizes)
    return memory, pickle.loads(content, buffers=buffers)


@functools.lru_cache(_SEGMENTS_KEPT)
def _attach_memory(name: str) -> SharedMemory:
    """Return the shared memory of batches; attaching it anew would map its pages again."""
    return SharedMemory(name)


def _read_into(
    reader: _SharedReader,
    memory_name: str,
    shape: tuple[int, ...],
    positions: Sequence[int],
    rows: Sequence[Row],
) -> ReadResult:
    """Read rows into positions of a batch's shared memory, a worker's task."""
    images = np.ndarray(shape, np.uint8, _attach_memory(memory_name).buf)
    return _attach_reader(*reader)[1].read(rows, [images[position] for position in positions])
