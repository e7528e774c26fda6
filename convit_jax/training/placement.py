"""Placing an experiment on a mesh: the sharding of its arrays, and its jitted steps."""

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from convit_jax.config import Config
from convit_jax.distributed import mesh as meshes
from convit_jax.distributed.sharding import state_sharding
from convit_jax.training.experiment import Experiment
from convit_jax.training.step import TrainState


@dataclasses.dataclass(frozen=True)
class Placement:
    """The shardings and jitted steps of an experiment on a mesh.

    Attributes:
        mesh: the devices.
        state: the sharding of each array of the state.
        rows: the sharding of a batch.
        teacher: the sharding of the teacher's parameters, as the only element; () without one.
        train_step: jitted (state, batch, *teacher) → (state, metrics), which donates the old state.
        eval_step: jitted (params, batch, *teacher) → sums of metrics.
    """

    mesh: Mesh
    state: TrainState
    rows: NamedSharding
    teacher: tuple[Any, ...]
    train_step: jax.stages.Wrapped
    eval_step: jax.stages.Wrapped


def memory_advice(config: Config, num_devices: int) -> str:
    """Return what to try when a step does not fit in the memory of `num_devices` devices."""
    advice = [] if config.model.remat else ["--config.model.remat=true"]
    advice += ["a smaller config.batch_size", "a larger config.optimizer.accumulate"]
    if config.mesh.fsdp < num_devices:
        advice.append("a larger config.mesh.fsdp")
    return f"try {', '.join(advice[:-1])} or {advice[-1]}"


def abstract_teacher(experiment: Experiment) -> tuple[Any, ...]:
    """Return the shapes of the teacher's parameters, as the only element; () without a teacher."""
    teacher = experiment.teacher
    assert (teacher is not None) == bool(experiment.config.distill.teacher), "see make_experiment"
    return () if teacher is None else (teacher.abstract_params(),)


def place_teacher(experiment: Experiment, placement: Placement) -> tuple[Any, ...]:
    """Return the teacher's parameters on the devices, as the only element; () without a teacher."""
    if experiment.teacher is None:
        return ()
    # A program has no parameters beside it; `jax.jit` accepts the empty tree.
    (sharding,) = placement.teacher
    return (jax.jit(lambda params: params, out_shardings=sharding)(experiment.teacher.params),)


def place(experiment: Experiment, mesh: Mesh) -> Placement:
    """Place an experiment on the mesh it was built for. Nothing is compiled yet.

    Raises:
        InputError: a batch does not divide evenly among the devices.
    """
    config = experiment.config
    meshes.check_divides(
        mesh,
        config.batch_size,
        "config.batch_size",
        pairs=experiment.step_config.mixing.enabled,
        parts=experiment.step_config.accumulate,
    )
    meshes.check_divides(mesh, config.eval_batch_size, "config.eval_batch_size")
    everywhere, rows = meshes.replicated(mesh), meshes.batch_sharding(mesh)
    state = state_sharding(experiment.abstract_state(), mesh)
    teacher = tuple(state_sharding(params, mesh) for params in abstract_teacher(experiment))

    return Placement(
        mesh=mesh,
        state=state,
        rows=rows,
        teacher=teacher,
        train_step=jax.jit(
            experiment.train_step,
            in_shardings=(state, rows, *teacher),
            out_shardings=(state, everywhere),
            donate_argnums=0,
        ),
        eval_step=jax.jit(
            experiment.eval_step,
            in_shardings=(state.eval_params, rows, *teacher),
            out_shardings=everywhere,
        ),
    )
