"""The device mesh and the shardings of batches on it."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from convit_jax.data import Batch
from convit_jax.errors import InputError

AXES = ("data", "fsdp")


def create_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return a mesh [data, fsdp]: parameters are sharded within groups of `fsdp` devices.

    With `fsdp=1` only the gradients are exchanged, by all devices at once, so the devices are
    ordered by host: a host's rows of a batch are then contiguous, and it decodes an image once for
    all its views (`data.order.views_layout`). Otherwise the order follows the links between chips.

    Args:
        fsdp: size of a group.
        devices: the devices to use; None for those of all processes.

    Raises:
        InputError: the devices do not divide into such groups.
    """
    devices = jax.devices() if devices is None else devices
    num_devices = len(devices)
    if num_devices % fsdp:
        divisors = [size for size in range(1, num_devices + 1) if num_devices % size == 0]
        closest = sorted(sorted(divisors, key=lambda size: abs(size - fsdp))[:2])
        raise InputError(
            f"config.mesh.fsdp={fsdp}: {num_devices} devices do not divide into such groups; the "
            f"nearest that do: {' and '.join(map(str, closest))}"
        )
    shape, axis_types = (num_devices // fsdp, fsdp), (AxisType.Auto,) * 2
    if fsdp > 1:
        return jax.make_mesh(shape, AXES, axis_types=axis_types, devices=devices)
    by_host = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(by_host).reshape(shape), AXES, axis_types=axis_types)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch: its rows over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array that every device holds completely."""
    return NamedSharding(mesh, PartitionSpec())


def check_divides(
    mesh: Mesh, batch_size: int, key: str, *, pairs: bool = False, parts: int = 1
) -> None:
    """Check that a batch divides evenly among the devices.

    Args:
        mesh: the devices.
        batch_size: number of rows of the batch.
        key: the config key or flag to name in errors.
        pairs: whether each device needs an even number of rows, to mix neighbours.
        parts: number of parts the batch is split into, each sharded over all devices.

    Raises:
        InputError: the devices do not divide the batch.
    """
    unit = mesh.size * parts * (2 if pairs else 1)
    if batch_size % unit:
        lower = batch_size - batch_size % unit
        nearest = f"{lower} and {lower + unit}" if lower else f"{unit}"
        in_pairs = " in pairs, as mixup and CutMix need them" if pairs else ""
        in_parts = f" in {parts} parts (config.optimizer.accumulate)" if parts > 1 else ""
        raise InputError(
            f"{key}: {batch_size} images do not divide among {mesh.size} devices"
            f"{in_parts}{in_pairs}; the nearest that do: {nearest}"
        )


def evaluation_batch_size(mesh: Mesh, batch_size: int, num_examples: int) -> int:
    """Return a batch size for examples that are evaluated once, no larger than they need.

    Args:
        mesh: the devices.
        batch_size: as requested by `--batch-size`.
        num_examples: rounded up to a multiple of the devices, the most rows that a step needs.

    Raises:
        InputError: the devices do not divide `batch_size`.
    """
    check_divides(mesh, batch_size, "--batch-size")
    return min(batch_size, -(-num_examples // mesh.size) * mesh.size)


def local_rows(sharding: NamedSharding, batch_size: int) -> list[int]:
    """Return the rows of a batch that this process's devices hold, ascending.

    On a pod with `fsdp > 1` they may not be contiguous: see `create_mesh`.
    """
    indices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return sorted({row for index in indices if index for row in range(batch_size)[index[0]]})


def to_global(batch: Batch, sharding: NamedSharding, batch_size: int) -> dict[str, jax.Array]:
    """Assemble all processes' rows into arrays on the mesh; returns before the copy is complete.

    Args:
        batch: this process's `local_rows`.
        sharding: the sharding of a batch.
        batch_size: number of rows of all processes together.
    """
    return {
        name: jax.make_array_from_process_local_data(
            sharding, np.ascontiguousarray(rows), (batch_size, *rows.shape[1:])
        )
        for name, rows in batch.items()
    }
