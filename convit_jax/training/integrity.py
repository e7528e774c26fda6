"""Whether a checkpoint is what was saved: what its files say, and a checksum of every array."""

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

# The item of a checkpoint that says what its arrays were when they were saved.
CHECKSUMS = "checksums"

_READ_AT_ONCE = 1 << 24  # bytes
# Knuth's multiplicative hash, 2³² over the golden ratio.
_MULTIPLIER = 2654435761


def find_damage(checkpoint: epath.Path, abstract_state: Any) -> str | None:
    """What is wrong with a checkpoint, or None where its state can be read.

    Every file is read first, so that what the machine refuses is not taken for damage; then the
    state is, into this process's memory and no accelerator's.

    Args:
        checkpoint: directory of one step.
        abstract_state: shapes and types of what it holds.

    Raises:
        MachineError: the machine does not let some file be read.
        RuntimeError: JAX was told to do without the CPU (`JAX_PLATFORMS`), so nothing is known.
    """
    for path in _files(checkpoint):
        with boundary(str(path)), path.open("rb") as file:
            while file.read(_READ_AT_ONCE):
                pass
    in_memory = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    sharding = jax.tree.map(lambda _: in_memory, abstract_state)
    try:
        with boundary(str(checkpoint)):
            read_checksums(checkpoint)
            read_state(checkpoint, abstract_state, sharding)
    except InputError as error:
        return first_line(error.__cause__ or error)
    return None


def read_state(checkpoint: epath.Path, abstract_state: Any, sharding: Any) -> Any:
    """The state in a checkpoint, waiting for no other process; raises what libraries do.

    Args:
        checkpoint: directory of one step.
        abstract_state: shapes and types of what it holds.
        sharding: how each array is to lie on devices, a tree like the state.
    """
    target = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        abstract_state,
        sharding,
    )
    args = ocp.args.StandardRestore(target)
    return ocp.StandardCheckpointHandler().restore(checkpoint / STATE, args=args)


def read_checksums(checkpoint: epath.Path) -> dict[str, int] | None:
    """What a checkpoint says of its arrays; None in one of an earlier version."""
    path = checkpoint / CHECKSUMS / "metadata"
    return dict(json.loads(path.read_text())) if path.exists() else None


def _files(directory: epath.Path) -> Iterator[epath.Path]:
    """Every file below a directory; of gs:// paths etils lists one level at a time."""
    with boundary(str(directory)):
        inside = sorted(directory.iterdir())
    for path in inside:
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def checksums(tree: Any) -> dict[str, int]:
    """A checksum of every array, by dotted name: the same however it lies on devices.

    It is Σ bᵢ wᵢ modulo 2³², of an array's elements as whole numbers b and odd weights w: a change
    of any one element changes it.
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
    """The names of arrays whose checksums are not those that were saved."""
    now = checksums(tree)
    return [name for name, value in now.items() if saved.get(name) != value]


def check_metrics(metrics: epath.Path, name: str) -> None:
    """Raises InputError where a checkpoint's metrics hold no number of some name."""
    with boundary(str(metrics), "cannot be read"):
        value = json.loads(metrics.read_text())[name]
        if type(value) not in (int, float) or not np.isfinite(value):
            raise InputError(f"{metrics} has {name}={value!r}: expected a number")
