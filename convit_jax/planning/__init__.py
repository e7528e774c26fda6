"""Estimates of what a run needs on a TPU slice, from the TPU compiler; no TPU is required."""

from convit_jax.planning.compiling import Plan, make_plan
from convit_jax.planning.topologies import TOPOLOGIES, Topology, describe_topologies, find_topology
