"""Models in checkpoint directories: those that training leaves and those made from other files."""

import contextlib
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from convit_jax.errors import InputError, boundary, nearest
from convit_jax.weights.card import Card
from convit_jax.weights.torch_names import parameter_shapes, to_torch

# What a checkpoint holds: the state (of which `params`, or where there is one the running average
# `ema_params`, is the model), the card and, after training, the config.
STATE, CARD, CONFIG = "state", "card", "config"
PARAMS, AVERAGE = "params", "ema_params"

log = logging.getLogger(__name__)


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
    with boundary(str(directory)):
        above = of_workdir if of_workdir.is_dir() else directory
        steps = [path for path in above.iterdir() if path.name.isdecimal() and path.is_dir()]
        inside = sorted(path.name for path in directory.iterdir())
    if not steps:
        files = [name for name in inside if name.endswith((".safetensors", ".pth", ".pt", ".bin"))]
        hint = f"; if you mean {files[0]} in it, name that" if files else ""
        raise InputError(
            f"no checkpoint in {directory}: expected a workdir of train.py, a checkpoint, or a "
            f"directory with model.safetensors{hint}"
        )
    accuracies = {path: _accuracy(path) for path in steps}
    chosen = max(steps, key=lambda path: (accuracies[path], int(path.name)))
    if len(steps) > 1:
        others = ", ".join(sorted((p.name for p in steps if p != chosen), key=int))
        why = "the best by accuracy" if accuracies[chosen] >= 0 else "the newest"
        log.info("%s: step %s, %s; also there: %s", directory, chosen.name, why, others)
    return chosen


def is_checkpoint(directory: epath.Path) -> bool:
    """Whether a directory is a checkpoint, or may hold some: a workdir."""
    return (directory / STATE).is_dir() or (directory / "checkpoints").is_dir()


def _accuracy(checkpoint: epath.Path) -> float:
    """The checkpoint's evaluation accuracy, or -1 where it has none that can be read."""
    path = checkpoint / "metrics" / "metrics"
    try:
        with boundary(str(path)):
            accuracy = json.loads(path.read_text())["accuracy"]
            return accuracy if type(accuracy) in (int, float) and 0 <= accuracy <= 1 else -1.0
    except InputError:
        return -1.0


def read_checkpoint(
    checkpoint: epath.Path, entry: str | None = None
) -> tuple[dict[str, np.ndarray], Card, str]:
    """A checkpoint's model, as tensors of the released layout, its card, and what was chosen.

    Args:
        checkpoint: from `find_checkpoint`.
        entry: "params" or "ema_params", the running average; without it the average if there is
            one.

    Raises:
        InputError: it is damaged, no checkpoint of ours, or has no such parameters.
        MachineError: it cannot be read for want of permission, memory or such.
    """
    with boundary(f"the checkpoint {checkpoint}", "is damaged"), _quiet():
        if not checkpoint.is_dir():
            raise InputError(f"{checkpoint} is no checkpoint: expected a directory")
        for part in (checkpoint / CARD / "metadata", checkpoint / STATE):
            if not part.exists():
                raise InputError(f"{checkpoint} is no whole checkpoint: {part} is missing")
        try:
            card = Card.from_json(json.loads((checkpoint / CARD / "metadata").read_text()))
        except InputError as error:
            raise InputError(f"the checkpoint {checkpoint} is damaged: {error}") from error
        if card.architecture is None:
            raise InputError(f"the checkpoint {checkpoint} does not say its architecture")
        params, note = _restore_params(checkpoint, entry, parameter_shapes(card.architecture))
        return to_torch(params, card.architecture), card, note


def write_checkpoint(directory: epath.Path, params: Mapping[str, np.ndarray], card: Card) -> None:
    """Writes a model as a checkpoint directory.

    Args:
        directory: to be made.
        params: our parameters by dotted name.
        card: with the architecture.

    Raises:
        InputError: the place cannot be written to.
        MachineError: the machine is to blame for that.
    """
    tree: dict[str, Any] = {}
    for name, array in params.items():
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = np.asarray(array, order="C")
    with (
        boundary(str(directory), "cannot be written", chosen=True),
        _quiet(),
        contextlib.closing(ocp.Checkpointer(ocp.CompositeCheckpointHandler())) as writer,
    ):
        directory.parent.mkdir(parents=True, exist_ok=True)
        writer.save(
            directory,
            ocp.args.Composite(
                **{
                    STATE: ocp.args.StandardSave({"params": tree}),
                    CARD: ocp.args.JsonSave(card.as_json()),
                }
            ),
        )


def _restore_params(
    checkpoint: epath.Path, entry: str | None, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, np.ndarray], str]:
    """The model's parameters alone, by dotted name, without the optimizer's state, and a note."""
    with contextlib.closing(ocp.Checkpointer(ocp.PyTreeCheckpointHandler())) as reader:
        metadata = reader.metadata(checkpoint / STATE).item_metadata
        if metadata is None:
            raise ValueError("what it holds cannot be read")
        saved = metadata.tree
        there = [name for name in (AVERAGE, PARAMS) if saved.get(name)]
        if (entry or PARAMS) not in there:
            raise InputError(
                f"the checkpoint {checkpoint} has no '{entry or PARAMS}': "
                f"{nearest(entry or PARAMS, there) if there else 'it is damaged'}"
            )
        wanted = entry or there[0]
        item = {wanted: saved[wanted]}
        # Before anything is read: garbled shapes would have arrays of any size made.
        stored = {name: tuple(leaf.shape) for name, leaf in _by_name(saved[wanted]).items()}
        if stored != dict(shapes):
            differs = next(n for n in (*shapes, *stored) if stored.get(n) != shapes.get(n))
            raise ValueError(
                f"its card's model has {shapes.get(differs, 'no')} {differs}, it holds "
                f"{stored.get(differs, 'none')}"
            )
        as_numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
            item,
            is_leaf=lambda node: not isinstance(node, dict),
        )
        args = ocp.args.PyTreeRestore(item=item, restore_args=as_numpy, partial_restore=True)
        params = reader.restore(checkpoint / STATE, args=args)[wanted]
    others = [name for name in there if name != wanted]
    note = "the running average of the parameters is taken" if wanted == AVERAGE else ""
    if note and others:
        note += f"; for the parameters themselves: #{PARAMS}"
    return _by_name(params), note


def _by_name(tree: Mapping[str, Any]) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda n: not isinstance(n, dict))
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax's remarks, by way of absl, to itself, and late answers of its threads."""
    # Of a damaged checkpoint threads answer when nobody waits any longer, each with a traceback,
    # and at any time later: so these two stay in place.
    sys.unraisablehook = without_late_answers
    logging.getLogger("asyncio").addFilter(_is_no_late_answer)
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _is_no_late_answer(record: logging.LogRecord) -> bool:
    return "exception was never retrieved" not in record.getMessage()


def without_late_answers(unraisable: Any) -> None:
    """Reports what nobody can catch, but for reads that end after the first of them has failed."""
    error = unraisable.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        sys.__unraisablehook__(unraisable)
