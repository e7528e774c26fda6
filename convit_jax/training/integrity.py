"""Whether a checkpoint is what was saved: what its files say, and a checksum of every array."""

import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts
from etils import epath

from convit_jax.errors import InputError, boundary, first_line, some
from convit_jax.training.optimizer import parameter_names
from convit_jax.weights.model_checkpoints import STATE

# The item of a checkpoint that says what its arrays were when they were saved.
CHECKSUMS = "checksums"

_READ_AT_ONCE = 1 << 24  # bytes
# Leaves of a state, as Orbax names their types, that have no array.
_EMPTY = ("None", "Dict", "List", "NamedTuple", "Tuple")
# Knuth's multiplicative hash, 2³² over the golden ratio.
_MULTIPLIER = 2654435761


def find_damage(checkpoint: epath.Path) -> str | None:
    """What is wrong with a checkpoint's arrays, or None where all of them can be read.

    Every file is read first, so that what the machine refuses is not taken for damage; then every
    array is, into this process's memory and no device's.

    Args:
        checkpoint: directory of one step.

    Raises:
        MachineError: the machine does not let some file be read.
    """
    for path in _files(checkpoint):
        with boundary(str(path)), path.open("rb") as file:
            while file.read(_READ_AT_ONCE):
                pass
    try:
        with boundary(str(checkpoint)):
            read_checksums(checkpoint)
            return _read_arrays(checkpoint / STATE)
    except InputError as error:
        return first_line(error.__cause__ or error)


def read_checksums(checkpoint: epath.Path) -> dict[str, int] | None:
    """What a checkpoint says of its arrays; None in one of an earlier version."""
    path = checkpoint / CHECKSUMS / "metadata"
    return dict(json.loads(path.read_text())) if path.exists() else None


def _read_arrays(state: epath.Path) -> str | None:
    """Reads every array of a state: which are missing, or None; raises what libraries do."""
    leaves = json.loads((state / "_METADATA").read_text())["tree_metadata"].values()
    place = str(state) if "://" in str(state) else f"file://{state}"
    store = {"driver": "ocdbt", "base": f"{place}/"}
    arrays = {
        key.decode().removesuffix("/.zarray")
        for key in ts.KvStore.open(store).result().list().result()
        if key.endswith(b"/.zarray")
    }
    wanted = {
        ".".join(str(part["key"]) for part in leaf["key_metadata"])
        for leaf in leaves
        if leaf["value_metadata"]["value_type"] not in _EMPTY
    }
    if wanted - arrays:
        return f"missing: {some(sorted(wanted - arrays), 3)}"
    for array in sorted(arrays):
        spec = {"driver": "zarr", "kvstore": store | {"path": f"{array}/"}}
        ts.open(spec, read=True).result().read().result()
    return None


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
