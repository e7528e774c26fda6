"""Starting from weights rather than from nothing (`config.init_from`)."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np

from convit_jax.distributed.mesh import replicated
from convit_jax.errors import InputError
from convit_jax.models import Architecture
from convit_jax.training.optimizer import parameter_names
from convit_jax.training.step import TrainState
from convit_jax.weights import Card, Weights, from_torch, to_torch

log = logging.getLogger(__name__)

_HEAD = "head."


def warm_start(state: TrainState, weights: Weights, card: Card, sharding: TrainState) -> TrainState:
    """A fresh state with the parameters of other weights, as far as they fit.

    The head stays fresh where the weights have other classes. Absolute positions are resampled
    where they are for another grid; relative ones are computed from the grid and need nothing.
    What was loaded, resampled and left fresh is logged.

    Args:
        state: before the first step.
        weights: to start from.
        card: the run's own, with its architecture and classes.
        sharding: how the state is to lie on the devices, a tree like it.

    Raises:
        InputError: the weights are another model's; every misfit is listed.
    """
    architecture = card.architecture
    weights.log_notes()
    names = parameter_names(state.params)
    keeps_head, about_head = _compare_classes(weights, card)
    tensors = dict(weights.tensors_for(architecture))
    if not keeps_head:
        tensors |= to_torch(_fresh_head(state, names, sharding), architecture)
    with weights.naming_errors():
        loaded = from_torch(tensors, architecture)
        _check_heads(weights, architecture)
    params = jax.tree.unflatten(jax.tree.structure(state.params), [loaded[name] for name in names])
    log.info("%s", _report(weights, architecture, names, keeps_head, about_head))
    # Copies of their own, not views of the host's memory: the step gives the buffers away.
    place = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=sharding.params)
    ema_params = None if state.ema_params is None else place(params)
    return dataclasses.replace(state, params=place(params), ema_params=ema_params)


def _fresh_head(state: TrainState, names: list[str], sharding: TrainState) -> dict[str, np.ndarray]:
    """The head's parameters, whole, wherever their parts lie."""
    leaves = zip(names, jax.tree.leaves(state.params), strict=True)
    head = {name: leaf for name, leaf in leaves if name.startswith(_HEAD)}
    mesh = jax.tree.leaves(sharding.params)[0].mesh
    gathered = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(head)
    return {name: np.asarray(leaf) for name, leaf in gathered.items()}


def _compare_classes(weights: Weights, card: Card) -> tuple[bool, str]:
    """Whether the weights' head is for the run's classes, and why it is not or may be."""
    there, here = weights.class_names(), card.class_names
    count = weights.num_classes()
    if count != len(here):
        return False, f"{count} classes there, {len(here)} here"
    if there is None:
        return True, f"its {count} classes have no names there and are taken for those here"
    return there == here, "" if there == here else f"its {count} classes have other names there"


def _check_heads(weights: Weights, architecture: Architecture) -> None:
    """Plain attention of another number of heads has tensors of the same shapes."""
    heads = weights.num_heads()
    if heads is not None and heads != architecture.num_heads:
        raise InputError(
            f"the weights have {heads} heads a layer, config.model makes {architecture.num_heads}"
        )


def _report(
    weights: Weights,
    architecture: Architecture,
    names: list[str],
    keeps_head: bool,
    about_head: str,
) -> str:
    """What was loaded, resampled and left fresh."""
    fresh = [] if keeps_head else [name for name in names if name.startswith(_HEAD)]
    native = weights.native_image_size()
    resampled = "pos_embed" in names and native not in (None, architecture.image_size)
    loaded = len(names) - len(fresh) - resampled
    parts = [f"starting from {weights.name}: {loaded} of {len(names)} parameters loaded as is"]
    if resampled:
        old = "x".join(str(side // architecture.patch_size) for side in native)
        parts.append(
            f"resampled: pos_embed, {old} to {architecture.grid[0]}x{architecture.grid[1]} patches"
        )
    if weights.num_heads() is None:
        parts.append(
            f"the tensors do not tell heads: {architecture.num_heads} a layer, as config.model has"
        )
    if fresh:
        parts.append(f"fresh: {', '.join(fresh)} ({about_head})")
    elif about_head:
        parts.append(f"the head is kept: {about_head}")
    return "; ".join(parts)
