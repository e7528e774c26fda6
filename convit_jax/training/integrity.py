"""Checking that a checkpoint holds what was saved: readable files and a checksum per array."""

import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from convit_jax.errors import InputError, boundary, first_line
from convit_jax.training.optimizer import parameter_names
from convit_jax.weights.model_checkpoints import STATE

# The checkpoint item with the checksums of the arrays when they were saved.
CHECKSUMS = "checksums"

_CHUNK_SIZE = 1 << 24  # bytes
# 2³² divided by the golden ratio, as in Knuth's multiplicative hash.
_MULTIPLIER = 2654435761


def find_damage(checkpoint: epath.Path, abstract_state: Any) -> str | None:
    """Return what is wrong with a checkpoint, or None if its state can be read.

    All files are read first, so that a fault of the machine is not mistaken for damage. Then the
    state is restored into this process's memory, not onto an accelerator.

    Args:
        checkpoint: directory of one step.
        abstract_state: shapes and types of the saved state.

    Raises:
        MachineError: a fault of the machine prevents reading some file.
        RuntimeError: JAX has no CPU backend (`JAX_PLATFORMS`), so damage cannot be detected.
    """
    for path in _files(checkpoint):
        with boundary(str(path)), path.open("rb") as file:
            while file.read(_CHUNK_SIZE):
                pass
    on_cpu = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    sharding = jax.tree.map(lambda _: on_cpu, abstract_state)
    try:
        with boundary(str(checkpoint)):
            read_checksums(checkpoint)
            read_state(checkpoint, abstract_state, sharding)
    except InputError as error:
        return first_line(error.__cause__ or error)
    return None


def read_state(checkpoint: epath.Path, abstract_state: Any, sharding: Any) -> Any:
    """Return the state in a checkpoint, without waiting for other processes.

    Saved arrays that the state does not have are not read.

    Args:
        checkpoint: directory of one step.
        abstract_state: shapes and types of the saved state.
        sharding: sharding of each array, a tree like the state.

    Raises:
        Exception: of any type, raised by Orbax or the libraries under it.
    """
    target = jax.tree.map(
        lambda leaf, placement: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placement),
        abstract_state,
        sharding,
    )
    args = ocp.args.PyTreeRestore(
        item=target,
        restore_args=ocp.checkpoint_utils.construct_restore_args(target),
        partial_restore=True,
    )
    return ocp.PyTreeCheckpointHandler().restore(checkpoint / STATE, args=args)


def read_checksums(checkpoint: epath.Path) -> dict[str, int] | None:
    """Return a checkpoint's checksums by array name, or None if an earlier version saved it."""
    path = checkpoint / CHECKSUMS / "metadata"
    return dict(json.loads(path.read_text())) if path.exists() else None


def _files(directory: epath.Path) -> Iterator[epath.Path]:
    """Yield every file below a directory; etils lists gs:// paths one level at a time."""
    with boundary(str(directory)):
        children = sorted(directory.iterdir())
    for path in children:
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def checksums(tree: Any) -> dict[str, int]:
    """Return a checksum of each array by dotted name, independent of the sharding.

    The checksum is Σ bᵢ wᵢ modulo 2³², with the elements' bits as integers b and odd weights w, so
    that a change of any single element changes it.
    """
    sums = jax.device_get(_checksums(jax.tree.leaves(tree)))
    return dict(zip(parameter_names(tree), map(int, sums), strict=True))


@jax.jit
def _checksums(leaves: list[jax.Array]) -> list[jax.Array]:
    return [_checksum(leaf) for leaf in leaves]


def _checksum(array: jax.Array) -> jax.Array:
    if jnp.issubdtype(array.dtype, jnp.floating):
        bits = jax.lax.bitcast_convert_type(array, f"uint{8 * array.dtype.itemsize}")
    else:
        bits = array
    index = jnp.zeros(array.shape, jnp.uint32)
    for axis, size in enumerate(array.shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
    weights = (index * jnp.uint32(_MULTIPLIER)) | jnp.uint32(1)
    return jnp.sum(bits.astype(jnp.uint32) * weights, dtype=jnp.uint32)


def changed_arrays(tree: Any, saved: dict[str, Any]) -> list[str]:
    """Return the names of the arrays whose checksums differ from the saved ones."""
    return [name for name, value in checksums(tree).items() if saved.get(name) != value]


def check_metrics(metrics: epath.Path, name: str) -> None:
    """Raise InputError unless a checkpoint's metrics hold a finite number called `name`."""
    with boundary(str(metrics), "cannot be read"):
        value = json.loads(metrics.read_text())[name]
        if type(value) not in (int, float) or not np.isfinite(value):
            raise InputError(f"{metrics} has {name}={value!r}: expected a number")
