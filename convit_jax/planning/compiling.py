"""The train step of `train.py`, compiled for a TPU slice, and what can be read off the result."""

import dataclasses
import re

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from convit_jax.config import Config
from convit_jax.distributed import mesh as meshes
from convit_jax.distributed.sharding import measure_sharded_size
from convit_jax.kernels import Form
from convit_jax.planning import schedules
from convit_jax.planning.program import read_cost
from convit_jax.planning.topologies import Topology
from convit_jax.training import Experiment, make_experiment
from convit_jax.training.distillation import open_config_teacher
from convit_jax.training.placement import abstract_teacher, memory_advice, place
from convit_jax.training.utilisation import step_flops


@dataclasses.dataclass(frozen=True)
class Plan:
    """The compiler's estimates for a run; nothing was executed.

    Attributes:
        model, topology: names.
        chips, hosts: number of each in the slice.
        mesh: (data, fsdp).
        batch_size, batch_per_chip: images per step.
        parts: number of parts in which a chip computes its images, one after another.
        fits: whether the program fits a chip's memory.
        problem: if it does not fit, by how much and what to try; else "".
        hbm_bytes: memory of a chip.
        parameter_bytes, optimizer_bytes, temporary_bytes, other_bytes: on each chip. Temporary are
            activations and everything else that lives during a step, which the compiler does not
            separate; other are the batch, the program and its results.
        total_bytes: their sum; if the program does not fit, the compiler's figure of what it needs,
            or 0.
        gflops_per_image: 10⁹ operations of a forward pass, plus twice that for the backward pass,
            less what frozen parameters save; includes the work of the kernels, excludes
            recomputation by `remat`. A teacher's forward pass is in it.
        teacher: name of the teacher of a distillation; "" without one.
        teacher_bytes: its parameters on each chip; those in a `.stablehlo` are in `other_bytes`.
        teacher_gflops_per_image: the part of `gflops_per_image` that is the teacher's.
        bytes_per_step: bytes that a chip reads and writes per step.
        collectives: (kind, number, bytes) per step.
        custom_kernels: number of calls of custom kernels per step.
        custom_cycles: the part of `cycles` that is in custom kernels, from their schedules.
        unknown_kernels: number of the calls that have no known schedule and are not in `cycles`.
        cycles: estimated cycles per step.
        images_per_second: upper estimate for the whole slice.
        mfu: `gflops_per_image` at this speed, as a share of the peak.
        hours: lower estimate for the config's whole training.
        images_per_second_per_host: speed at which each host must read and augment.
    """

    model: str
    topology: str
    chips: int
    hosts: int
    mesh: tuple[int, int]
    batch_size: int
    batch_per_chip: int
    parts: int
    fits: bool
    problem: str
    hbm_bytes: int
    parameter_bytes: int
    optimizer_bytes: int
    temporary_bytes: int = 0
    other_bytes: int = 0
    total_bytes: int = 0
    teacher: str = ""
    teacher_bytes: int = 0
    gflops_per_image: float = 0.0
    teacher_gflops_per_image: float = 0.0
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
    """Compile a config's train step for a slice and read off what it needs.

    Args:
        config: the run.
        topology: the slice.
        num_examples, num_classes: size of the training data, which is not read.
        attention: form of attention that overrides the config's.

    Raises:
        InputError: the config does not fit the slice's devices, or the compiler is not installed.
    """
    devices = topology.devices()
    mesh = meshes.create_mesh(config.mesh.fsdp, devices)
    experiment = make_experiment(
        config,
        num_examples=num_examples,
        num_classes=num_classes,
        mesh=mesh,
        attention=attention,
        teacher=open_config_teacher(config, num_classes, mesh=mesh, attention=attention),
    )
    placement = place(experiment, mesh)
    state, sharding = experiment.abstract_state(), placement.state
    teacher, (data, fsdp) = abstract_teacher(experiment), mesh.devices.shape
    plan = Plan(
        model=config.model.name,
        topology=topology.name,
        chips=topology.chips,
        hosts=len({device.process_index for device in devices}),
        mesh=(data, fsdp),
        batch_size=config.batch_size,
        batch_per_chip=config.batch_size // topology.chips,
        parts=experiment.step_config.accumulate,
        fits=False,
        problem="",
        hbm_bytes=topology.chip.hbm_bytes,
        parameter_bytes=measure_sharded_size(state.params, sharding.params).on_device,
        optimizer_bytes=measure_sharded_size(state.opt_state, sharding.opt_state).on_device
        + measure_sharded_size(state.ema_params, sharding.ema_params).on_device,
        teacher=config.distill.teacher,
        teacher_bytes=measure_sharded_size(teacher, placement.teacher).on_device,
    )
    schedules.clear()
    batch = _abstract_batch(experiment, placement.rows)
    try:
        compiled = placement.train_step.lower(state, batch, *teacher).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        required, available = _memory_figures(str(error))
        excess = f" by {(required - available) / 2**30:.2f} GiB" if required else ""
        advice = memory_advice(config, topology.chips)
        problem = f"too large for a chip's memory{excess}: {advice}"
        return dataclasses.replace(plan, problem=problem, total_bytes=required)
    hlo = compiled.as_text()
    memory, costs = compiled.memory_analysis(), compiled.cost_analysis()
    # Optional in JAX, but the TPU compiler returns all three.
    assert hlo is not None
    assert memory is not None
    assert costs is not None
    program = read_cost(hlo, schedules.read_cycles())
    seconds = program.cycles / topology.chip.clock
    images_per_second = config.batch_size / seconds
    flops = step_flops(experiment)
    teacher_flops = experiment.teacher.forward_flops() if experiment.teacher else 0.0
    total_bytes = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    itemised_bytes = plan.parameter_bytes + plan.optimizer_bytes + plan.teacher_bytes
    itemised_bytes += memory.temp_size_in_bytes
    return dataclasses.replace(
        plan,
        fits=True,
        temporary_bytes=memory.temp_size_in_bytes,
        other_bytes=total_bytes - itemised_bytes,
        total_bytes=total_bytes,
        gflops_per_image=flops / 1e9,
        teacher_gflops_per_image=teacher_flops / 1e9,
        # The compiler counts a loop's body once, and an accumulated batch is a loop over its parts.
        bytes_per_step=costs["bytes accessed"] * plan.parts,
        collectives=program.collectives,
        custom_kernels=program.custom_calls,
        custom_cycles=program.custom_cycles,
        unknown_kernels=program.unknown_calls,
        cycles=program.cycles,
        images_per_second=images_per_second,
        mfu=flops * images_per_second / topology.chips / topology.chip.peak_flops,
        hours=experiment.total_steps * seconds / 3600,
        images_per_second_per_host=images_per_second / plan.hosts,
    )


def _memory_figures(error: str) -> tuple[int, int]:
    """Return the bytes that a step needs and a chip has, parsed from the compiler's error; or 0."""
    sizes = re.search(r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)", error)
    if not sizes:
        return 0, 0
    required, available = (
        round(float(number) * 2 ** (10 * (1 + "KMGT".index(unit))))
        for number, unit in ((sizes[1], sizes[2]), (sizes[3], sizes[4]))
    )
    return required, available


def _abstract_batch(
    experiment: Experiment, sharding: NamedSharding
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return shapes, types and sharding of a training batch."""
    a, batch_size = experiment.architecture, experiment.config.batch_size
    image_shape = (batch_size, *a.image_size, a.in_channels)
    return {
        "image": jax.ShapeDtypeStruct(image_shape, jnp.uint8, sharding=sharding),
        "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32, sharding=sharding),
    }
