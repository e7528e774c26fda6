"""Models in checkpoint directories, written by training or converted from other files."""

import contextlib
import dataclasses
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from convit_jax.errors import InputError, boundary, naming, nearest
from convit_jax.weights.card import Card
from convit_jax.weights.torch_names import parameter_shapes, to_torch

# The items of a checkpoint: the state (whose `params`, or preferably the running average
# `ema_params`, are the model), the card and, after training, the config.
STATE, CARD, CONFIG = "state", "card", "config"
PARAMS, AVERAGE = "params", "ema_params"

log = logging.getLogger(__name__)


def find_checkpoint(directory: epath.Path) -> epath.Path:
    """Find the checkpoint in a directory.

    Args:
        directory: a checkpoint, a directory of checkpoints, or a workdir. Of several checkpoints,
            the one with the best evaluation accuracy is returned, otherwise the newest.

    Raises:
        InputError: there is none.
    """
    if (directory / STATE).is_dir():
        return directory
    of_workdir = directory / "checkpoints"
    with boundary(str(directory)):
        parent = of_workdir if of_workdir.is_dir() else directory
        steps = [path for path in parent.iterdir() if path.name.isdecimal() and path.is_dir()]
        names = sorted(path.name for path in directory.iterdir())
    if not steps:
        files = [name for name in names if name.endswith((".safetensors", ".pth", ".pt", ".bin"))]
        hint = f"; did you mean {files[0]} in it?" if files else ""
        raise InputError(
            f"no checkpoint in {directory}: expected a workdir of train.py, a checkpoint, or a "
            f"directory with model.safetensors{hint}"
        )
    accuracies = {path: _accuracy(path) for path in steps}
    chosen = max(steps, key=lambda path: (accuracies[path], int(path.name)))
    if len(steps) > 1:
        others = ", ".join(sorted((p.name for p in steps if p != chosen), key=int))
        reason = "the best by accuracy" if accuracies[chosen] >= 0 else "the newest"
        log.info("%s: step %s, %s; other steps: %s", directory, chosen.name, reason, others)
    return chosen


def is_checkpoint(directory: epath.Path) -> bool:
    """Whether a directory is a checkpoint, or a workdir, which may have checkpoints."""
    return (directory / STATE).is_dir() or (directory / "checkpoints").is_dir()


def _accuracy(checkpoint: epath.Path) -> float:
    """Return the checkpoint's evaluation accuracy, or -1 if it has none that can be read."""
    path = checkpoint / "metrics" / "metrics"
    try:
        with boundary(str(path)):
            accuracy = json.loads(path.read_text())["accuracy"]
            return accuracy if type(accuracy) in (int, float) and 0 <= accuracy <= 1 else -1.0
    except InputError:
        return -1.0


@dataclasses.dataclass(frozen=True)
class Run:
    """The training run that a checkpoint is from.

    Attributes:
        config: the resolved configuration, as JSON types.
        step: of the checkpoint.
        accuracy: top-1 accuracy of its evaluation, or None.
    """

    config: Mapping[str, Any]
    step: int
    accuracy: float | None


def read_run(checkpoint: epath.Path) -> Run | None:
    """Return the run of a checkpoint from `find_checkpoint`; None if it is not from training.

    Raises:
        InputError: its config is damaged.
        MachineError: the machine cannot read it.
    """
    path = checkpoint / CONFIG / "metadata"
    with boundary(str(path)):
        if not path.exists() or not checkpoint.name.isdecimal():
            return None
        config = json.loads(path.read_text())
    if not isinstance(config, Mapping) or not isinstance(config.get("data"), Mapping):
        raise InputError(f"{path} is damaged: expected the config of a run")
    accuracy = _accuracy(checkpoint)
    return Run(config, int(checkpoint.name), accuracy if accuracy >= 0 else None)


def read_checkpoint(
    checkpoint: epath.Path, entry: str | None = None
) -> tuple[dict[str, np.ndarray], Card, str]:
    """Read a checkpoint's model, in the released layout, its card, and a note on what was chosen.

    Args:
        checkpoint: from `find_checkpoint`.
        entry: "params" or "ema_params", the running average. None chooses the average if there is
            one.

    Raises:
        InputError: it is damaged, not this package's checkpoint, or has no such parameters.
        MachineError: the machine cannot read it (permission, memory, storage).
    """
    with boundary(f"the checkpoint {checkpoint}", "is damaged"), _quiet_orbax():
        if not checkpoint.is_dir():
            raise InputError(f"{checkpoint} is not a checkpoint: expected a directory")
        for part in (checkpoint / CARD / "metadata", checkpoint / STATE):
            if not part.exists():
                raise InputError(f"{checkpoint} is not a complete checkpoint: {part} is missing")
        with naming(f"the checkpoint {checkpoint} is damaged"):
            card = Card.from_json(json.loads((checkpoint / CARD / "metadata").read_text()))
        if card.architecture is None:
            raise InputError(f"the card of the checkpoint {checkpoint} has no architecture")
        params, note = _restore_params(checkpoint, entry, parameter_shapes(card.architecture))
        return to_torch(params, card.architecture), card, note


def write_checkpoint(directory: epath.Path, params: Mapping[str, np.ndarray], card: Card) -> None:
    """Write a model as a checkpoint directory.

    Args:
        directory: to be created.
        params: parameters by dotted name.
        card: with the architecture.

    Raises:
        InputError: the directory cannot be written to.
        MachineError: it cannot be written because of a fault of the machine.
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
        _quiet_orbax(),
        contextlib.closing(ocp.Checkpointer(ocp.CompositeCheckpointHandler())) as writer,
    ):
        directory.parent.mkdir(parents=True, exist_ok=True)
        items = {
            STATE: ocp.args.StandardSave({"params": tree}),
            CARD: ocp.args.JsonSave(card.as_json()),
        }
        writer.save(directory, ocp.args.Composite(**items))


def _restore_params(
    checkpoint: epath.Path, entry: str | None, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, np.ndarray], str]:
    """Restore only the model's parameters, by dotted name; return them and a note."""
    with contextlib.closing(ocp.Checkpointer(ocp.PyTreeCheckpointHandler())) as reader:
        metadata = reader.metadata(checkpoint / STATE).item_metadata
        if metadata is None:
            raise ValueError("its content cannot be read")
        saved = metadata.tree
        present = [name for name in (AVERAGE, PARAMS) if saved.get(name)]
        if (entry or PARAMS) not in present:
            raise InputError(
                f"the checkpoint {checkpoint} has no '{entry or PARAMS}': "
                f"{nearest(entry or PARAMS, present) if present else 'it is damaged'}"
            )
        chosen = entry or present[0]
        item = {chosen: saved[chosen]}
        # Checked before reading: with damaged shapes, arrays of any size would be allocated.
        stored = {name: tuple(leaf.shape) for name, leaf in _by_name(saved[chosen]).items()}
        if stored != dict(shapes):
            differs = next(n for n in (*shapes, *stored) if stored.get(n) != shapes.get(n))
            raise ValueError(
                f"its card's model has {shapes.get(differs, 'no')} {differs}, but it holds "
                f"{stored.get(differs, 'none')}"
            )
        as_numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
            item,
            is_leaf=lambda node: not isinstance(node, dict),
        )
        args = ocp.args.PyTreeRestore(item=item, restore_args=as_numpy, partial_restore=True)
        params = reader.restore(checkpoint / STATE, args=args)[chosen]
    others = [name for name in present if name != chosen]
    note = "using the running average of the parameters" if chosen == AVERAGE else ""
    if note and others:
        note += f"; for the parameters themselves: #{PARAMS}"
    return _by_name(params), note


def _by_name(tree: Mapping[str, Any]) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda n: not isinstance(n, dict))
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Suppress Orbax's log messages (through absl), and tracebacks of its late reads."""
    # After a damaged checkpoint, Orbax's threads fail at any later time, each with a traceback. So
    # these two stay in place.
    sys.unraisablehook = report_unraisable
    logging.getLogger("asyncio").addFilter(_is_not_late_read)
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _is_not_late_read(record: logging.LogRecord) -> bool:
    return "exception was never retrieved" not in record.getMessage()


def report_unraisable(unraisable: Any) -> None:
    """Report unraisable exceptions, except of reads that end after the first of them has failed."""
    error = unraisable.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        sys.__unraisablehook__(unraisable)
