"""Broken images of all processes together: each reads a part of them, the limit is one of all."""

import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from convit_jax import data

_NONE = -1


class BrokenTogether:
    """Tells the other processes which images this one could not read, and hears of theirs.

    Nothing waits: what is sent at one line of the log is looked at when the next is written. One
    process alone checks by itself as it reads, and has nothing to tell.
    """

    def __init__(self, images: data.Source, max_broken: float) -> None:
        """Takes the images and the share of them that may be broken."""
        self._together = jax.process_count() > 1
        self.health = data.BrokenImageCounter(images, max_broken, enforce=not self._together)
        self._sent: jax.Array | None = None

    def check(self) -> None:
        """Looks at what was sent the last time, and sends again; every process at the same step.

        Raises:
            RunError: all together have met more broken images than allowed; in every process.
        """
        if not self._together:
            return
        if self._sent is not None:
            indices = np.asarray(self._sent.addressable_data(0)).ravel()
            self._sent = None
            self.health.check(indices[indices != _NONE].tolist())
        self._sent = _everybodys(self._mine())

    def check_now(self) -> None:
        """As `check`, and waits for what all have to say."""
        self.check()
        self.check()

    def _mine(self) -> np.ndarray:
        """Int32 [allowed + 1]: as many as make too many, if this process alone met so many."""
        own = np.full(self.health.allowed + 1, _NONE, np.int32)
        met = list(self.health.indices)[: len(own)]
        own[: len(met)] = met
        return own


def checked(batches: Iterator[data.Batch], broken: BrokenTogether) -> Iterator[data.Batch]:
    """The batches, as many in every process, and after the last the judgement on all of them."""
    yield from batches
    broken.check_now()


def _everybodys(own: np.ndarray) -> jax.Array:
    """[processes, ...] of the same array of each process, on every device; does not wait."""
    one_each, gather = _gathering()
    shape = (jax.process_count(), *own.shape)
    return gather(jax.make_array_from_process_local_data(one_each, own[None], shape))


@functools.cache
def _gathering() -> tuple[NamedSharding, Callable[[jax.Array], jax.Array]]:
    """How an array lies that has a row for each process, and what copies it to every device."""
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    # Every process has as many.
    mesh = Mesh(np.array(devices).reshape(jax.process_count(), -1), ("process", "device"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    gather = jax.jit(lambda rows: rows, out_shardings=everywhere)
    return NamedSharding(mesh, PartitionSpec("process")), gather
