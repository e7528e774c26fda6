"""Saving and finding the state of a run, by Orbax.

A checkpoint holds the state, the config that it belongs to and the model's card, so that it can be
understood without the run around it.
"""

import contextlib
import dataclasses
import errno
import logging
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from convit_jax.config import CheckpointConfig, Config
from convit_jax.distributed.processes import of_all_processes
from convit_jax.errors import (
    InputError,
    MachineError,
    RunError,
    first_line,
    machine_fault,
    some,
)
from convit_jax.training.integrity import (
    CHECKSUMS,
    changed_arrays,
    check_metrics,
    checksums,
    find_damage,
    read_checksums,
    read_state,
)
from convit_jax.training.optimizer import parameter_names
from convit_jax.training.resumption import DATA
from convit_jax.training.step import TrainState
from convit_jax.weights import Card
from convit_jax.weights.model_checkpoints import CARD, CONFIG, STATE, report_unraisable

_BEST_METRIC = "accuracy"
_DAMAGED_SUFFIX = ".damaged"

log = logging.getLogger(__name__)


def _score(metrics: dict[str, float]) -> float:
    return metrics[_BEST_METRIC]


def hush_writers() -> None:
    """For a program that ends when a checkpoint cannot be written: says nothing besides its error.

    Orbax logs the error that it also raises, by absl, and asyncio those of the other writes, which
    nobody asks for then; TensorStore's threads go on for a moment and find that nobody waits.
    """
    for logger in ("absl", "asyncio"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    sys.unraisablehook = report_unraisable


def open_checkpoints(directory: epath.Path, keep: CheckpointConfig) -> ocp.CheckpointManager:
    """The checkpoints in a directory, kept by recency and by evaluation accuracy."""
    policies: list[checkpoint_managers.PreservationPolicy] = [
        checkpoint_managers.LatestN(keep.keep_latest)
    ]
    if keep.keep_best:
        policies.append(
            checkpoint_managers.BestN(
                get_metric_fn=_score, n=keep.keep_best, keep_checkpoints_without_metrics=False
            )
        )
    if jax.process_index() == 0:
        _set_aside_garbled_metrics(directory)
    multihost_utils.sync_global_devices("checkpoints can be listed")
    options = ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
        best_fn=_score,
        cleanup_tmp_directories=True,
    )
    return ocp.CheckpointManager(directory, options=options)


def save(
    checkpoints: ocp.CheckpointManager,
    state: TrainState,
    step: int,
    config: Config,
    card: Card,
    accuracy: float | None,
    num_examples: int,
) -> None:
    """Saves the state after `step` steps; the writing goes on in the background.

    Args:
        checkpoints: where to.
        state: what to save; its buffers may be given away once this returns.
        step: steps done.
        config: the run's configuration, saved beside the state.
        card: what the model says of itself, saved likewise.
        accuracy: the state's evaluation accuracy, if it was evaluated.
        num_examples: how many examples the run trains on.

    Raises:
        RunError: this checkpoint or the one before could not be written.
    """
    _check_room(checkpoints, state)
    try:
        checkpoints.save(
            step,
            args=ocp.args.Composite(
                **{
                    STATE: ocp.args.StandardSave(state),
                    CONFIG: ocp.args.JsonSave(dataclasses.asdict(config)),
                    CARD: ocp.args.JsonSave(card.as_json()),
                    DATA: ocp.args.JsonSave({"train_examples": num_examples}),
                    CHECKSUMS: ocp.args.JsonSave(checksums(state)),
                }
            ),
            metrics=None if accuracy is None else {_BEST_METRIC: accuracy},
        )
    except Exception as error:  # whatever writes it raises
        raise _unwritten(checkpoints, error) from error


def is_best(
    checkpoints: ocp.CheckpointManager, keep: CheckpointConfig, accuracy: float | None
) -> bool:
    """Whether an evaluation is worth a checkpoint: the best are kept and this beats them."""
    if accuracy is None or not keep.keep_best:
        return False
    best = checkpoints.best_step()
    return best is None or accuracy > _score(checkpoints.metrics(best))


def owes_evaluation(checkpoints: ocp.CheckpointManager, step: int, every: int) -> bool:
    """Whether a run that goes on after `step` steps was stopped before it evaluated there."""
    return step > 0 and step % every == 0 and checkpoints.metrics(step) is None


def finish_saving(checkpoints: ocp.CheckpointManager) -> None:
    """Waits for what is being written.

    Raises:
        RunError: it could not be written.
    """
    try:
        checkpoints.wait_until_finished()
    except Exception as error:  # whatever writes it raises
        raise _unwritten(checkpoints, error) from error


@contextlib.contextmanager
def closed_at_the_end(checkpoints: ocp.CheckpointManager) -> Iterator[None]:
    """Closes the checkpoints when this ends; what ended it is not hidden by what closing says."""
    try:
        yield
    except BaseException:
        try:
            checkpoints.close()
        except Exception as error:
            log.debug("closing the checkpoints said, too: %s", first_line(error))
        raise
    checkpoints.close()


def _check_room(checkpoints: ocp.CheckpointManager, state: TrainState) -> None:
    """Refuses a checkpoint that a local disk has no room for, before any of it is written."""
    if "://" in str(checkpoints.directory):
        return
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    free = shutil.disk_usage(checkpoints.directory).free
    if free < needed:
        finish_saving(checkpoints)  # the one before may still be on its way
        room = f"no space is left: {needed / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free"
        full = OSError(errno.ENOSPC, room)
        raise _unwritten(checkpoints, full)


def _unwritten(checkpoints: ocp.CheckpointManager, error: Exception) -> RunError:
    checkpoints.reload()
    kept = sorted(checkpoints.all_steps())
    return RunError(
        f"a checkpoint could not be written to {checkpoints.directory} ({first_line(error)}); "
        f"kept: {', '.join(f'step {step}' for step in kept) or 'none'}. When that is mended, start "
        "again with the same --workdir"
    )


def restore_newest(
    checkpoints: ocp.CheckpointManager, abstract_state: TrainState, sharding: Any
) -> TrainState | None:
    """The state of the newest checkpoint that can be read, or None where there is none.

    A damaged one is set aside under another name, saying so, and the one before is tried. One that
    is whole and does not fit, or that the machine does not let be read, stays where it is. Whatever
    a library raises, damaged is what cannot be read into this process's memory either, while all
    of its files can. Of several processes each reads, and all agree before any acts.

    Args:
        checkpoints: where from.
        abstract_state: shapes and types of the state.
        sharding: how each array is to lie on the devices, a tree like the state.

    Raises:
        InputError: the newest that can be read holds another model's state, or there are damaged
            ones alone: to train from the beginning must be asked for.
        MachineError: the machine does not let it be read, in this process or in another.
    """
    steps = sorted(checkpoints.all_steps(), reverse=True)
    for step in steps:
        directory = checkpoints.directory / str(step)
        state, saved_sums, error = None, None, None
        try:
            _check_fits(directory, abstract_state)
            saved_sums = read_checksums(directory)
            # The manager's own restoring waits for all processes, who may not get there.
            state = read_state(directory, abstract_state, sharding)
        except Exception as raised:  # whatever reading it raises
            error = raised
        if any(of_all_processes(error is not None)):
            damage = _find_damage_together(directory, abstract_state, error)
            log.debug("restoring step %d said: %s", step, error and first_line(error))
        else:
            damage = _changes(state, saved_sums)
        if damage is None:
            return state
        log.warning(
            "the checkpoint of step %d is damaged (%s): it is set aside, trying the one before",
            step,
            damage,
        )
        # Every process found so; one renames it, and the others wait for that.
        if jax.process_index() == 0:
            _set_aside(directory, directory)
        multihost_utils.sync_global_devices(f"set step {step} aside")
        checkpoints.reload()
    aside = sorted(p.name for p in checkpoints.directory.glob(f"*{_DAMAGED_SUFFIX}*"))
    if aside:
        raise InputError(
            f"{checkpoints.directory} holds damaged checkpoints alone ({some(aside, 3)}): use "
            "another --workdir, or remove them to train from the beginning"
        )
    return None


def _find_damage_together(
    checkpoint: epath.Path, abstract_state: TrainState, error: Exception | None
) -> str:
    """What is wrong with a checkpoint that some process could not read, by what all find.

    Args:
        checkpoint: directory of one step.
        abstract_state: shapes and types of the state.
        error: why this process could not read it, if it could not.

    Raises:
        InputError: it holds another model's state.
        MachineError: it cannot be read here for another reason than damage, or elsewhere.
    """
    damage, failure = None, None
    try:
        if isinstance(error, InputError):
            raise error
        damage = find_damage(checkpoint, abstract_state)
        if damage is None and error is not None:
            fault = machine_fault(error)
            if fault is None or isinstance(error, jax.errors.JaxRuntimeError):
                raise error  # no room for it on the devices, say
            raise MachineError(f"the checkpoint of step {checkpoint.name}: {fault}") from error
    except Exception as raised:
        failure = raised
    failed = np.flatnonzero(of_all_processes(failure is not None))
    sound = np.flatnonzero(of_all_processes(damage is None))
    if failure is not None:
        raise failure
    if len(failed):
        raise MachineError(
            f"the checkpoint of step {checkpoint.name} cannot be read by process "
            f"{', '.join(map(str, failed))}, whose log says why"
        )
    if damage is None or len(sound):
        raise MachineError(
            f"the checkpoint of step {checkpoint.name} is sound as process "
            f"{', '.join(map(str, sound))} reads it, and damaged as others do"
            f"{f' ({damage})' if damage else ''}: it stays as it is; expected storage that shows "
            "all hosts the same"
        )
    return damage


def _changes(state: TrainState, saved: dict[str, int] | None) -> str | None:
    """What of a state is not as it was saved; None where all is, or where nothing tells."""
    changed = changed_arrays(state, saved) if saved is not None else []
    return f"not as they were saved: {some(changed, 3)}" if changed else None


def _check_fits(checkpoint: epath.Path, abstract_state: TrainState) -> None:
    """Raises InputError where a checkpoint says that its arrays are others than the state's."""
    with contextlib.closing(ocp.Checkpointer(ocp.PyTreeCheckpointHandler())) as reader:
        metadata = reader.metadata(checkpoint / STATE).item_metadata
    if metadata is None:
        return  # it cannot be read: restoring says why
    there, here = dict(_shapes(metadata.tree)), dict(_shapes(abstract_state))
    misfits = [
        f"{name} ({there.get(name, 'none')} there, {here.get(name, 'none')} here)"
        for name in dict.fromkeys((*here, *there))
        if there.get(name) != here.get(name)
    ]
    if misfits:
        raise InputError(
            f"the checkpoint {checkpoint} holds another state than this run's: {some(misfits, 3)}. "
            "Use another --workdir, or the model and optimizer that it was begun with"
        )


def _shapes(tree: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(dotted name, shape) of each array of a state."""
    return zip(parameter_names(tree), (tuple(x.shape) for x in jax.tree.leaves(tree)), strict=True)


def _set_aside_garbled_metrics(directory: epath.Path) -> None:
    """Sets aside metrics that are garbled, at which Orbax would refuse all of the checkpoints.

    The state beside them may be sound: it is as one that was not evaluated.
    """
    for metrics in directory.glob("*/metrics/metrics"):
        step = metrics.parent.parent.name
        if not step.isdigit():
            continue
        try:
            check_metrics(metrics, _BEST_METRIC)
        except InputError as error:
            log.warning("the metrics of the checkpoint of step %s are damaged (%s)", step, error)
            _set_aside(metrics.parent, directory / f"{step}.metrics")


def _set_aside(damaged: epath.Path, name: epath.Path) -> None:
    """Renames what is damaged after `name`: nothing is lost, and its step can be saved again."""
    aside = name.parent / (name.name + _DAMAGED_SUFFIX)
    number = 1
    while aside.exists():
        number += 1
        aside = name.parent / f"{name.name}{_DAMAGED_SUFFIX}{number}"
    damaged.rename(aside)
    log.warning("what is damaged is kept as %s", aside.name)
