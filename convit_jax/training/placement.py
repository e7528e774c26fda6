"""An experiment on a mesh: where its arrays lie, and its steps compiled for that."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from convit_jax import kernels
from convit_jax.config import Config
from convit_jax.training import mesh as meshes
from convit_jax.training.experiment import Experiment
from convit_jax.training.sharding import state_sharding
from convit_jax.training.step import TrainState


@dataclasses.dataclass(frozen=True)
class Placement:
    """What a run needs to know of its devices.

    Attributes:
        mesh: the devices.
        state: how each array of the state lies on them.
        rows: how a batch does.
        train_step: jitted (state, batch) → (state, metrics), which gives the old state away.
        eval_step: jitted (params, batch) → sums of metrics.
    """

    mesh: Mesh
    state: TrainState
    rows: NamedSharding
    train_step: Callable[..., Any]
    eval_step: Callable[..., Any]


def memory_advice(config: Config, devices: int) -> str:
    """What to try where a step does not fit the memory of so many devices."""
    advice = [] if config.model.remat else ["--config.model.remat=true"]
    advice += ["a smaller config.batch_size", "a larger config.optimizer.accumulate"]
    if config.mesh.fsdp < devices:
        advice.append("a larger config.mesh.fsdp")
    return f"try {', '.join(advice[:-1])} or {advice[-1]}"


def place(
    experiment: Experiment, mesh: Mesh, *, attention: kernels.Form | None = None
) -> Placement:
    """Puts an experiment on a mesh. Nothing is compiled yet.

    Args:
        experiment: what is run.
        mesh: where.
        attention: its form, where it is not the config's.

    Raises:
        InputError: the devices do not divide a batch, or cannot have the attention's form.
    """
    config, architecture = experiment.config, experiment.architecture
    attention = attention or config.attention
    kernels.check_form(
        attention,
        mesh.devices.flat[0],
        architecture.dtype,
        architecture.head_dim,
        math.prod(architecture.grid),
    )
    meshes.check_divides(
        mesh,
        config.batch_size,
        "config.batch_size",
        pairs=experiment.step_config.mixing.on,
        parts=config.optimizer.accumulate,
    )
    meshes.check_divides(mesh, config.eval_batch_size, "config.eval_batch_size")
    everywhere, rows = meshes.replicated(mesh), meshes.batch_sharding(mesh)
    state = state_sharding(experiment.abstract_state(), mesh)

    def placed(step: Callable[..., Any]) -> Callable[..., Any]:
        return kernels.traced_for(step, mesh, meshes.AXES, attention)

    return Placement(
        mesh=mesh,
        state=state,
        rows=rows,
        train_step=jax.jit(
            placed(experiment.train_step),
            in_shardings=(state, rows),
            out_shardings=(state, everywhere),
            donate_argnums=0,
        ),
        eval_step=jax.jit(
            placed(experiment.eval_step),
            in_shardings=(state.eval_params, rows),
            out_shardings=everywhere,
        ),
    )
