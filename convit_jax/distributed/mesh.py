"""The devices as one mesh, and how arrays lie on it."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from convit_jax.data import Batch
from convit_jax.errors import InputError

AXES = ("data", "fsdp")


def create_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The devices in groups of `fsdp`, in which parameters are spread, along the `data` axis.

    Args:
        fsdp: size of a group.
        devices: to be used; None for all of all processes.

    Raises:
        InputError: the devices do not divide into such groups.
    """
    count = jax.device_count() if devices is None else len(devices)
    if count % fsdp:
        fitting = [size for size in range(1, count + 1) if count % size == 0]
        near = sorted(sorted(fitting, key=lambda size: abs(size - fsdp))[:2])
        raise InputError(
            f"config.mesh.fsdp={fsdp}: {count} devices do not divide into such groups; the "
            f"nearest that do: {' and '.join(map(str, near))}"
        )
    shape, kinds = (count // fsdp, fsdp), (AxisType.Auto,) * 2
    return jax.make_mesh(shape, AXES, axis_types=kinds, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """A batch's rows spread over every device."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_divides(
    mesh: Mesh, batch_size: int, key: str, *, pairs: bool = False, parts: int = 1
) -> None:
    """Refuses a batch size that does not fall evenly on the devices.

    Args:
        mesh: the devices.
        batch_size: its rows.
        key: the config key or flag to name.
        pairs: whether each device needs an even number, to mix neighbours with each other.
        parts: how many the batch is taken in, each of which is spread over all devices.

    Raises:
        InputError: the devices do not divide the batch.
    """
    unit = mesh.size * parts * (2 if pairs else 1)
    if batch_size % unit:
        lower = batch_size - batch_size % unit
        fitting = f"{lower} and {lower + unit}" if lower else f"{unit}"
        in_pairs = " in pairs, as mixup and CutMix need them" if pairs else ""
        in_parts = f" in {parts} parts (config.optimizer.accumulate)" if parts > 1 else ""
        raise InputError(
            f"{key}: {batch_size} images do not divide among {mesh.size} devices"
            f"{in_parts}{in_pairs}; the nearest that do: {fitting}"
        )


def local_rows(sharding: NamedSharding, batch_size: int) -> list[int]:
    """The rows of a batch that this process's devices hold, ascending.

    On a pod they need not be neighbours: a mesh follows the wires between chips, not the hosts.
    """
    places = sharding.addressable_devices_indices_map((batch_size,)).values()
    return sorted({row for (rows,) in places for row in range(batch_size)[rows]})


def to_global(batch: Batch, sharding: NamedSharding, batch_size: int) -> dict[str, jax.Array]:
    """Every process's rows as one array over the mesh; returns before the copy is done.

    Args:
        batch: this process's `local_rows`.
        sharding: of a batch.
        batch_size: rows of all processes together.
    """
    return {
        name: jax.make_array_from_process_local_data(
            sharding, np.ascontiguousarray(rows), (batch_size, *rows.shape[1:])
        )
        for name, rows in batch.items()
    }
