"""Estimates of what a run needs on a TPU slice, from the TPU compiler; no TPU is required."""

from convit_jax.planning.compiling import Plan as Plan
from convit_jax.planning.compiling import make_plan as make_plan
from convit_jax.planning.topologies import TOPOLOGIES as TOPOLOGIES
from convit_jax.planning.topologies import Topology as Topology
from convit_jax.planning.topologies import describe_topologies as describe_topologies
from convit_jax.planning.topologies import find_topology as find_topology
