"""Starting a run from existing weights (`config.init_from`)."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np

from convit_jax.distributed.mesh import replicated
from convit_jax.models import Architecture, is_of_head
from convit_jax.training.optimizer import parameter_names
from convit_jax.training.step import TrainState
from convit_jax.weights import Weights, from_torch, to_torch

log = logging.getLogger(__name__)


def warm_start(
    state: TrainState,
    weights: Weights,
    architecture: Architecture,
    class_names: tuple[str, ...],
    sharding: TrainState,
) -> TrainState:
    """Return a fresh state with the parameters of other weights, as far as they fit.

    The head stays fresh if the classes differ. Absolute positions of another grid are resampled,
    and the patch kernel is adapted to other channels;
    relative ones are computed from the grid. What was loaded, resampled and left fresh is logged.

    Args:
        state: the state before the first step.
        weights: the weights to start from.
        architecture: the run's architecture.
        class_names: the run's classes.
        sharding: sharding of the state, a tree like it.

    Raises:
        InputError: the weights are another model's; every misfit is listed.
    """
    weights.log_notes()
    names = parameter_names(state.params)
    keeps_head, head_note = _compare_classes(weights, class_names)
    tensors = dict(weights.tensors_for(architecture))
    if not keeps_head:
        tensors |= to_torch(_fresh_head(state, names, sharding), architecture)
    with weights.naming_errors():
        loaded = from_torch(tensors, architecture)
        weights.check_num_heads(architecture)
    params = jax.tree.unflatten(jax.tree.structure(state.params), [loaded[name] for name in names])
    log.info("%s", _report(weights, architecture, names, keeps_head, head_note))
    # Copies, not views of the host's memory, because the step donates the buffers.
    place = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=sharding.params)
    ema_params = None if state.ema_params is None else place(params)
    return dataclasses.replace(state, params=place(params), ema_params=ema_params)


def _fresh_head(state: TrainState, names: list[str], sharding: TrainState) -> dict[str, np.ndarray]:
    """Return the head's parameters, gathered from all devices."""
    leaves = zip(names, jax.tree.leaves(state.params), strict=True)
    head = {name: leaf for name, leaf in leaves if is_of_head(name)}
    mesh = jax.tree.leaves(sharding.params)[0].mesh
    gathered = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(head)
    return {name: np.asarray(leaf) for name, leaf in gathered.items()}


def _compare_classes(weights: Weights, class_names: tuple[str, ...]) -> tuple[bool, str]:
    """Return whether the weights' head is for the run's classes, and a note if that is unclear."""
    weights_class_names, num_classes = weights.class_names(), weights.num_classes()
    if num_classes != len(class_names):
        return False, f"the weights have {num_classes} classes, the data {len(class_names)}"
    if weights_class_names is None:
        note = f"the weights do not name their {num_classes} classes, taken to be the data's"
        return True, note
    if weights_class_names != class_names:
        return False, f"the weights' {num_classes} classes have other names than the data's"
    return True, ""


def _report(
    weights: Weights, architecture: Architecture, names: list[str], keeps_head: bool, head_note: str
) -> str:
    """Describe what was loaded, resampled and left fresh."""
    fresh = [] if keeps_head else list(filter(is_of_head, names))
    num_unchanged, notes = len(names) - len(fresh), []
    native = weights.native_image_size()
    if "pos_embed" in names and native is not None and native != architecture.image_size:
        num_unchanged -= 1
        old, new = (
            "x".join(map(str, grid))
            for grid in ([side // architecture.patch_size for side in native], architecture.grid)
        )
        notes.append(f"resampled: pos_embed, {old} to {new} patches")
    if weights.num_heads() is None:
        notes.append(
            "the number of heads cannot be inferred from the tensors: assuming "
            f"{architecture.num_heads} per layer as in config.model"
        )
    if fresh:
        notes.append(f"fresh: {', '.join(fresh)} ({head_note})")
    elif head_note:
        notes.append(f"the head is kept: {head_note}")
    loaded = f"{num_unchanged} of {len(names)} parameters loaded unchanged"
    return "; ".join([f"starting from {weights.name}: {loaded}", *notes])
