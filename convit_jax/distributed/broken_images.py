"""Counting broken images over all processes: each reads a part of them, under a common limit."""

import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from convit_jax import data

_NONE = -1


class BrokenImageExchange:
    """Exchanges the indices of unreadable images with the other processes.

    Nothing blocks: the indices sent at one metrics line are examined at the next. A single process
    checks the limit itself while it reads, and exchanges nothing.

    Attributes:
        health: the broken images that this process encountered.
    """

    def __init__(self, images: data.Source, max_broken: float) -> None:
        """Count broken images among `images`, of which a share of `max_broken` is allowed."""
        self._several_processes = jax.process_count() > 1
        self.counter = data.BrokenImageCounter(
            images, max_broken, enforce=not self._several_processes
        )
        self._sent: jax.Array | None = None

    def check(self) -> None:
        """Examine what was sent last time and send again; all processes call it at the same step.

        Raises:
            RunError: in every process, if all together have more broken images than allowed.
        """
        if not self._several_processes:
            return
        if self._sent is not None:
            indices = np.asarray(self._sent.addressable_data(0)).ravel()
            self._sent = None
            self.counter.check(indices[indices != _NONE].tolist())
        self._sent = _all_gather(self._local_indices())

    def check_now(self) -> None:
        """Like `check`, but wait for the current indices of all processes."""
        self.check()
        self.check()

    def _local_indices(self) -> np.ndarray:
        """Return int32 [allowed + 1], enough to exceed the limit by this process alone."""
        padded = np.full(self.counter.allowed + 1, _NONE, np.int32)
        indices = list(self.counter.indices)[: len(padded)]
        padded[: len(indices)] = indices
        return padded


def check_at_end(
    batches: Iterator[data.Batch], broken_images: BrokenImageExchange
) -> Iterator[data.Batch]:
    """Yield the batches, equally many in every process, and check broken images after the last."""
    yield from batches
    broken_images.check_now()


def _all_gather(local: np.ndarray) -> jax.Array:
    """Return [processes, ...], each process's array on every device; does not block."""
    one_per_process, gather = _gather_over_processes()
    shape = (jax.process_count(), *local.shape)
    return gather(jax.make_array_from_process_local_data(one_per_process, local[None], shape))


@functools.cache
def _gather_over_processes() -> tuple[NamedSharding, Callable[[jax.Array], jax.Array]]:
    """Return the sharding of an array with a row per process, and a function that replicates it."""
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    # All processes have equally many devices.
    mesh = Mesh(np.array(devices).reshape(jax.process_count(), -1), ("process", "device"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    gather = jax.jit(lambda rows: rows, out_shardings=everywhere)
    return NamedSharding(mesh, PartitionSpec("process")), gather
