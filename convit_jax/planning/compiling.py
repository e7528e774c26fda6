"""The very train step of `train.py`, compiled for a slice, and what that tells."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp

from convit_jax.config import Config
from convit_jax.distributed import mesh as meshes
from convit_jax.distributed.sharding import measure_sharded_size
from convit_jax.kernels import Form
from convit_jax.models import forward_flops
from convit_jax.planning import schedules
from convit_jax.planning.program import read_cost
from convit_jax.planning.topologies import Topology
from convit_jax.training import Experiment, make_experiment
from convit_jax.training.placement import Placement, memory_advice, place
from convit_jax.training.step import TrainState


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the compiler says of a run; estimates, nothing was run.

    Attributes:
        model, topology: names.
        chips, hosts: of the slice.
        mesh: (data, fsdp).
        batch_size, batch_per_chip: images a step.
        fits: whether the program fits a chip's memory.
        problem: by how much, and what to do, where it does not; else "".
        hbm_bytes: a chip's memory.
        parameter_bytes, optimizer_bytes, temporary_bytes, other_bytes: on each chip; temporary is
            activations and whatever else lives during a step, which the compiler does not tell
            apart, and other the batch, the program and what it returns.
        total_bytes: their sum; where it does not fit, what the compiler says that it needs, or 0.
        gflops_per_image: billions, of a forward pass and twice that backward, computed once: what
            the kernels do is in it, what `remat` does again is not.
        bytes_per_step: that a chip reads and writes in a step.
        collectives: (kind, how many, bytes) in a step.
        custom_kernels: how many run in a step.
        custom_cycles: of the cycles, what they have by their schedules.
        unknown_kernels: how many of them have none, their schedules being unknown.
        cycles: estimated, of a step.
        images_per_second: an upper estimate, for the whole slice.
        mfu: share of the peak that `gflops_per_image` would be at this pace.
        hours: for the config's whole training, likewise.
        images_per_second_per_host: what each host must read and augment.
    """

    model: str
    topology: str
    chips: int
    hosts: int
    mesh: tuple[int, int]
    batch_size: int
    batch_per_chip: int
    fits: bool
    problem: str
    hbm_bytes: int
    parameter_bytes: int
    optimizer_bytes: int
    temporary_bytes: int = 0
    other_bytes: int = 0
    total_bytes: int = 0
    gflops_per_image: float = 0.0
    bytes_per_step: float = 0.0
    collectives: tuple[tuple[str, int, int], ...] = ()
    custom_kernels: int = 0
    custom_cycles: int = 0
    unknown_kernels: int = 0
    cycles: int = 0
    images_per_second: float = 0.0
    mfu: float = 0.0
    hours: float = 0.0
    images_per_second_per_host: float = 0.0


def make_plan(
    config: Config,
    topology: Topology,
    *,
    num_examples: int,
    num_classes: int,
    attention: Form | None = None,
) -> Plan:
    """Compiles a config's train step for a slice and reads off what it needs.

    Args:
        config: the run.
        topology: the slice.
        num_examples, num_classes: of the training data, which need not be here.
        attention: its form, where it is not the config's.

    Raises:
        InputError: the config does not fit the slice's devices, or the compiler is not installed.
    """
    devices = topology.devices()
    mesh = meshes.create_mesh(config.mesh.fsdp, devices)
    experiment = make_experiment(
        config, num_examples=num_examples, num_classes=num_classes, mesh=mesh, attention=attention
    )
    placed = place(experiment, mesh)
    state = experiment.abstract_state()
    where = placed.state
    known: dict[str, Any] = {
        "model": config.model.name,
        "topology": topology.name,
        "chips": topology.chips,
        "hosts": len({device.process_index for device in devices}),
        "mesh": tuple(mesh.devices.shape),
        "batch_size": config.batch_size,
        "batch_per_chip": config.batch_size // topology.chips,
        "hbm_bytes": topology.chip.hbm_bytes,
        "parameter_bytes": measure_sharded_size(state.params, where.params).on_device,
        "optimizer_bytes": measure_sharded_size(state.opt_state, where.opt_state).on_device
        + measure_sharded_size(state.ema_params, where.ema_params).on_device,
    }
    schedules.clear()
    try:
        compiled = _lower(experiment, placed, state).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        needed, there = _excess(str(error))
        much = f" by {(needed - there) / 2**30:.2f} GiB" if needed else ""
        advice = memory_advice(config, topology.chips)
        return Plan(
            **known,
            fits=False,
            problem=f"too large for a chip's memory{much}: {advice}",
            total_bytes=needed,
        )
    memory, costs = compiled.memory_analysis(), compiled.cost_analysis()
    program = read_cost(compiled.as_text(), schedules.recorded())
    seconds = program.cycles / topology.chip.clock
    per_second = config.batch_size / seconds
    flops = 3 * forward_flops(experiment.architecture)
    total = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    named = known["parameter_bytes"] + known["optimizer_bytes"] + memory.temp_size_in_bytes
    return Plan(
        **known,
        fits=True,
        problem="",
        temporary_bytes=memory.temp_size_in_bytes,
        other_bytes=total - named,
        total_bytes=total,
        gflops_per_image=flops / 1e9,
        # The compiler counts a loop once, and the parts of an accumulated batch are one.
        bytes_per_step=costs["bytes accessed"] * config.optimizer.accumulate,
        collectives=program.collectives,
        custom_kernels=program.custom_calls,
        custom_cycles=program.custom_cycles,
        unknown_kernels=program.unknown_calls,
        cycles=program.cycles,
        images_per_second=per_second,
        mfu=flops * per_second / topology.chips / topology.chip.peak_flops,
        hours=experiment.total_steps * seconds / 3600,
        images_per_second_per_host=per_second / known["hosts"],
    )


def _excess(error: str) -> tuple[int, int]:
    """Bytes that a step would need, and those that a chip has, as the compiler says; or zeros."""
    sizes = re.search(r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)", error)
    if not sizes:
        return 0, 0
    needed, there = (
        round(float(number) * 2 ** (10 * (1 + "KMGT".index(unit))))
        for number, unit in ((sizes[1], sizes[2]), (sizes[3], sizes[4]))
    )
    return needed, there


def _lower(experiment: Experiment, placed: Placement, state: TrainState) -> Any:
    """The train step as placed, traced for shapes."""
    a, batch_size = experiment.architecture, experiment.config.batch_size
    shapes = {"image": (batch_size, *a.image_size, a.in_channels), "label": (batch_size,)}
    kinds = {"image": jnp.uint8, "label": jnp.int32}
    batch = {
        name: jax.ShapeDtypeStruct(shape, kinds[name], sharding=placed.rows)
        for name, shape in shapes.items()
    }
    return placed.train_step.lower(state, batch)
