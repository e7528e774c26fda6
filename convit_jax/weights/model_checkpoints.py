"""Models in checkpoint directories: those that training leaves and those made from other files."""

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from convit_jax.errors import InputError, first_line
from convit_jax.weights.card import Card
from convit_jax.weights.torch_names import to_torch

# What a checkpoint holds: the state (of which `params`, or where there is one the running average
# `ema_params`, is the model), the card and, after training, the config.
STATE, CARD, CONFIG = "state", "card", "config"

log = logging.getLogger(__name__)

# What Orbax and TensorStore raise for files that are missing, short or garbled.
DAMAGE = (OSError, ValueError, KeyError, TypeError)


def find_checkpoint(directory: epath.Path) -> epath.Path:
    """The checkpoint that a directory stands for.

    Args:
        directory: a checkpoint, a directory of them, or a workdir: of several, the one of the best
            evaluation accuracy is taken, or else the newest.

    Raises:
        InputError: there is none.
    """
    if (directory / STATE).is_dir():
        return directory
    of_workdir = directory / "checkpoints"
    above = of_workdir if of_workdir.is_dir() else directory
    steps = [path for path in above.iterdir() if path.name.isdigit() and path.is_dir()]
    if not steps:
        raise InputError(
            f"no checkpoint in {directory}: expected a workdir of train.py, or a checkpoint"
        )
    accuracies = {path: _accuracy(path) for path in steps}
    chosen = max(steps, key=lambda path: (accuracies[path], int(path.name)))
    if len(steps) > 1:
        others = ", ".join(sorted((p.name for p in steps if p != chosen), key=int))
        why = "the best by accuracy" if accuracies[chosen] >= 0 else "the newest"
        log.info("%s: step %s, %s; also there: %s", directory, chosen.name, why, others)
    return chosen


def _accuracy(checkpoint: epath.Path) -> float:
    """The checkpoint's evaluation accuracy, or -1 where it has none."""
    try:
        return float(json.loads((checkpoint / "metrics" / "metrics").read_text())["accuracy"])
    except DAMAGE:
        return -1.0


def read_checkpoint(checkpoint: epath.Path) -> tuple[dict[str, np.ndarray], Card]:
    """A checkpoint's model, as tensors of the released layout, and its card.

    Raises:
        InputError: it is damaged or no checkpoint of ours.
    """
    try:
        with _quiet():
            card = Card.from_json(json.loads((checkpoint / CARD / "metadata").read_text()))
            params = _restore_params(checkpoint / STATE)
    except FileNotFoundError as error:
        missing = error.filename or str(error)
        raise InputError(f"{checkpoint} is no whole checkpoint: {missing} is missing") from error
    except DAMAGE as error:
        line = first_line(error)
        raise InputError(f"the checkpoint {checkpoint} is damaged: {line[:200]}") from error
    if card.architecture is None:
        raise InputError(f"the checkpoint {checkpoint} does not say its architecture")
    return to_torch(params, card.architecture), card


def write_checkpoint(directory: epath.Path, params: Mapping[str, np.ndarray], card: Card) -> None:
    """Writes a model as a checkpoint directory.

    Args:
        directory: to be made.
        params: our parameters by dotted name.
        card: with the architecture.
    """
    tree: dict[str, Any] = {}
    for name, array in params.items():
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = array
    with _quiet(), contextlib.closing(ocp.Checkpointer(ocp.CompositeCheckpointHandler())) as writer:
        writer.save(
            directory,
            ocp.args.Composite(
                **{
                    STATE: ocp.args.StandardSave({"params": tree}),
                    CARD: ocp.args.JsonSave(card.as_json()),
                }
            ),
        )


def _restore_params(state: epath.Path) -> dict[str, np.ndarray]:
    """The model's parameters alone, by dotted name, without the optimizer's state."""
    with contextlib.closing(ocp.Checkpointer(ocp.PyTreeCheckpointHandler())) as reader:
        metadata = reader.metadata(state).item_metadata
        if metadata is None:
            raise ValueError("what it holds cannot be read")
        saved = metadata.tree
        wanted = "ema_params" if saved.get("ema_params") else "params"
        item = {wanted: saved[wanted]}
        as_numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
            item,
            is_leaf=lambda node: not isinstance(node, dict),
        )
        args = ocp.args.PyTreeRestore(item=item, restore_args=as_numpy, partial_restore=True)
        params = reader.restore(state, args=args)[wanted]
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax's remarks, by way of absl, to itself."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
