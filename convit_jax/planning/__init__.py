"""What a run would need on a TPU slice, found out by the TPU compiler without a TPU."""

from convit_jax.planning.compiling import Plan, make_plan
from convit_jax.planning.topologies import (
    TOPOLOGIES,
    Topology,
    describe_topologies,
    find_topology,
)

__all__ = ["TOPOLOGIES", "Plan", "Topology", "describe_topologies", "find_topology", "make_plan"]
