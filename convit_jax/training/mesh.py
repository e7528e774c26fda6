"""The devices as one mesh, and how arrays lie on it."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from convit_jax.data import Batch
from convit_jax.errors import InputError

AXES = ("data", "fsdp")


def create_mesh() -> Mesh:
    """All devices of all processes, along the `data` axis."""
    return jax.make_mesh((jax.device_count(), 1), AXES, axis_types=(AxisType.Auto,) * 2)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """A batch's rows spread over every device."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_divides(mesh: Mesh, batch_size: int, key: str, *, pairs: bool = False) -> None:
    """Refuses a batch size that does not fall evenly on the devices.

    Args:
        mesh: the devices.
        batch_size: rows of the smallest batch that is spread over them.
        key: the config key or flag to name.
        pairs: whether each device needs an even number, to mix neighbours with each other.

    Raises:
        InputError: the devices do not divide the batch.
    """
    unit = mesh.size * (2 if pairs else 1)
    if batch_size % unit:
        lower = batch_size - batch_size % unit
        fitting = f"{lower} and {lower + unit}" if lower else f"{unit}"
        in_pairs = " in pairs, as mixup and CutMix need them" if pairs else ""
        raise InputError(
            f"{key}: {batch_size} images do not divide among {mesh.size} devices"
            f"{in_pairs}; the nearest that do: {fitting}"
        )


def to_global(batch: Batch, sharding: NamedSharding) -> dict[str, jax.Array]:
    """Every process's rows as one array over the mesh; returns before the copy is done."""
    return {
        name: jax.make_array_from_process_local_data(sharding, np.ascontiguousarray(rows))
        for name, rows in batch.items()
    }
