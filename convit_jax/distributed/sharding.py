"""Which part of the state lies on which device: rules by the parameters' names."""

import dataclasses
import math
import re
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Any tree with arrays that are named after parameters.
State = TypeVar("State")

# (parameter, how its axes are spread), the first rule that matches holds. Matrices are spread along
# the axis between a pair of them, the channels of heads or of the hidden layer; vectors are small.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"blocks\.\d+\.attention\.(qk|v|qkv)\.kernel", PartitionSpec(None, "fsdp")),
    (r"blocks\.\d+\.attention\.proj\.kernel", PartitionSpec("fsdp", None)),
    (r"blocks\.\d+\.mlp\.fc1\.kernel", PartitionSpec(None, "fsdp")),
    (r"blocks\.\d+\.mlp\.fc2\.kernel", PartitionSpec("fsdp", None)),
    (r"patch_embed\.kernel", PartitionSpec(None, "fsdp")),
    (r"head\.kernel", PartitionSpec("fsdp", None)),
    (r"pos_embed", PartitionSpec(None, None, "fsdp")),
    (r".*", PartitionSpec()),
)


def state_sharding(abstract_state: State, mesh: Mesh) -> State:
    """How each array of the state lies on the devices.

    The optimizer's moments lie as their parameters do, and so does the running average. An array
    whose axis the group of devices does not divide stays whole on each.

    Args:
        abstract_state: shapes.
        mesh: the devices.

    Returns:
        A tree like the state, of `NamedSharding`.
    """

    def place(path: Any, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return NamedSharding(mesh, _partition(name, leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(place, abstract_state)


def _partition(name: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    # A name ends in the parameter's: opt_state.1.0.mu.head.kernel.
    spec = next(spec for rule, spec in RULES if re.fullmatch(rf"(.*\.)?({rule})", name))
    if len(spec) > len(shape):
        return PartitionSpec()  # a placeholder in the optimizer's state of what it leaves alone
    fits = all(
        axis is None or size % mesh.shape[axis] == 0
        for size, axis in zip(shape, spec, strict=False)
    )
    return spec if fits else PartitionSpec()


@dataclasses.dataclass(frozen=True)
class Spread:
    """How much of a tree is really spread over the devices.

    Attributes:
        total: bytes of one whole copy.
        spread: bytes of those arrays of it of which no device holds the whole.
        on_device: bytes that each device holds.
    """

    total: int
    spread: int
    on_device: int

    def __str__(self) -> str:
        share = self.spread / self.total if self.total else 0.0
        return f"{100 * share:.1f} % sharded, {self.on_device / 1e6:.1f} MB a device"


def measure_spread(tree: Any, shardings: Any) -> Spread:
    """Adds up what lies where.

    Args:
        tree: of arrays or their shapes.
        shardings: a tree like it.
    """
    total = spread = on_device = 0
    for leaf, sharding in zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True):
        size = leaf.size * leaf.dtype.itemsize
        part = size // (leaf.size or 1) * math.prod(sharding.shard_shape(leaf.shape))
        total, on_device = total + size, on_device + part
        spread += size if part < size else 0
    return Spread(total, spread, on_device)
