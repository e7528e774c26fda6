"""An experiment on a mesh: where its arrays lie, and its steps compiled for that."""

import dataclasses

import jax
from jax.sharding import Mesh, NamedSharding

from convit_jax.config import Config
from convit_jax.distributed import mesh as meshes
from convit_jax.distributed.sharding import state_sharding
from convit_jax.training.experiment import Experiment
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
    train_step: jax.stages.Wrapped
    eval_step: jax.stages.Wrapped


def memory_advice(config: Config, devices: int) -> str:
    """What to try where a step does not fit the memory of so many devices."""
    advice = [] if config.model.remat else ["--config.model.remat=true"]
    advice += ["a smaller config.batch_size", "a larger config.optimizer.accumulate"]
    if config.mesh.fsdp < devices:
        advice.append("a larger config.mesh.fsdp")
    return f"try {', '.join(advice[:-1])} or {advice[-1]}"


def place(experiment: Experiment, mesh: Mesh) -> Placement:
    """Puts an experiment on a mesh, the one it was made for. Nothing is compiled yet.

    Raises:
        InputError: the devices do not divide a batch.
    """
    config = experiment.config
    meshes.check_divides(
        mesh,
        config.batch_size,
        "config.batch_size",
        pairs=experiment.step_config.mixing.enabled,
        parts=config.optimizer.accumulate,
    )
    meshes.check_divides(mesh, config.eval_batch_size, "config.eval_batch_size")
    everywhere, rows = meshes.replicated(mesh), meshes.batch_sharding(mesh)
    state = state_sharding(experiment.abstract_state(), mesh)

    return Placement(
        mesh=mesh,
        state=state,
        rows=rows,
        train_step=jax.jit(
            experiment.train_step,
            in_shardings=(state, rows),
            out_shardings=(state, everywhere),
            donate_argnums=0,
        ),
        eval_step=jax.jit(
            experiment.eval_step,
            in_shardings=(state.eval_params, rows),
            out_shardings=everywhere,
        ),
    )
