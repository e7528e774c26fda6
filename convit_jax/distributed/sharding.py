"""Sharding of the state over the devices, by rules for the parameters' names."""

import dataclasses
import math
import re
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Any tree whose array names end in parameter names.
State = TypeVar("State")

# (parameter, partition); the first match applies. Matrices are sharded along the axis shared by a
# pair of them, the channels of the heads or of the hidden layer; vectors are small.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"blocks\.\d+\.attention\.(qk|v|qkv)\.kernel", PartitionSpec(None, "fsdp")),
    (r"blocks\.\d+\.attention\.proj\.kernel", PartitionSpec("fsdp", None)),
    (r"blocks\.\d+\.mlp\.fc1\.kernel", PartitionSpec(None, "fsdp")),
    (r"blocks\.\d+\.mlp\.fc2\.kernel", PartitionSpec("fsdp", None)),
    (r"patch_embed\.kernel", PartitionSpec(None, "fsdp")),
    (r"head(_dist)?\.kernel", PartitionSpec("fsdp", None)),
    (r"pos_embed", PartitionSpec(None, None, "fsdp")),
    (r".*", PartitionSpec()),
)


def state_sharding(abstract_state: State, mesh: Mesh) -> State:
    """Return the sharding of each array of the state.

    The optimizer's moments and the moving average are sharded like their parameters. An array whose
    axis size is not divisible by the size of the group is replicated.

    Args:
        abstract_state: shapes of the state.
        mesh: the devices.

    Returns:
        A tree like the state, of `NamedSharding`.
    """

    def leaf_sharding(path: Any, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return NamedSharding(mesh, _partition(name, leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(leaf_sharding, abstract_state)


def _partition(name: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    # Names end in the parameter's name: opt_state.1.0.mu.head.kernel.
    spec = next(spec for rule, spec in RULES if re.fullmatch(rf"(.*\.)?({rule})", name))
    if len(spec) > len(shape):
        return PartitionSpec()  # a placeholder in the state of a masked optimizer
    divisible = all(
        axis is None or size % mesh.shape[axis] == 0
        for size, axis in zip(shape, spec, strict=False)
    )
    return spec if divisible else PartitionSpec()


@dataclasses.dataclass(frozen=True)
class ShardedSize:
    """How much of a tree is sharded over the devices.

    Attributes:
        total: bytes of one full copy.
        sharded: bytes of the arrays of which no device holds a full copy.
        on_device: bytes on each device.
    """

    total: int
    sharded: int
    on_device: int

    def __str__(self) -> str:
        share = self.sharded / self.total if self.total else 0.0
        return f"{100 * share:.1f} % sharded, {self.on_device / 1e6:.1f} MB a device"


def measure_sharded_size(tree: Any, shardings: Any) -> ShardedSize:
    """Sum up the sizes of the arrays of a tree.

    Args:
        tree: arrays or their shapes.
        shardings: their shardings, a tree like it.
    """
    total = sharded = on_device = 0
    for leaf, sharding in zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True):
        size = leaf.size * leaf.dtype.itemsize
        part = size // (leaf.size or 1) * math.prod(sharding.shard_shape(leaf.shape))
        total, on_device = total + size, on_device + part
        sharded += size if part < size else 0
    return ShardedSize(total, sharded, on_device)
