"""Restoring the newest sound checkpoint, and setting damaged ones aside."""

import contextlib
import logging
import re
from collections.abc import Container, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from convit_jax.distributed.processes import all_gather_flag
from convit_jax.errors import InputError, MachineError, first_line, machine_fault, some
from convit_jax.training.integrity import (
    changed_arrays,
    check_metrics,
    find_damage,
    read_checksums,
    read_state,
)
from convit_jax.training.optimizer import parameter_names
from convit_jax.training.step import TrainState
from convit_jax.weights.model_checkpoints import STATE

_DAMAGED_SUFFIX = ".damaged"

log = logging.getLogger(__name__)


def restore_newest(
    checkpoints: ocp.CheckpointManager, abstract_state: TrainState, sharding: Any
) -> TrainState | None:
    """Restore the newest readable checkpoint, or return None if there are no checkpoints.

    A damaged checkpoint is renamed with a warning, and the previous one is tried. A sound
    checkpoint that does not fit the state, or that a fault of the machine makes unreadable, is left
    unchanged. Libraries raise errors of any type, so a checkpoint counts as damaged if its state
    cannot be read into this process's memory either although all of its files can. With several
    processes, each reads, and all agree before any of them acts.

    Args:
        checkpoints: the checkpoints of the run.
        abstract_state: shapes and types of the state.
        sharding: sharding of each array, a tree like the state.

    Raises:
        InputError: the newest readable checkpoint holds another model's state, or all checkpoints
            are damaged: training does not silently start over.
        MachineError: a fault of the machine, in this process or another, prevents reading.
    """
    for step in sorted(checkpoints.all_steps(), reverse=True):
        directory = checkpoints.directory / str(step)
        state, saved_checksums, error = None, None, None
        damage: str | None
        try:
            _check_fits(directory, abstract_state)
            saved_checksums = read_checksums(directory)
            # The manager's own restore would wait for all processes, some of which may fail first.
            state = read_state(directory, abstract_state, sharding)
        except Exception as raised:  # any library below Orbax may raise
            error = raised
        if any(all_gather_flag(error is not None)):
            damage = _agree_on_damage(directory, abstract_state, error)
            log.debug("restoring step %d failed: %s", step, error and first_line(error))
        else:
            assert state is not None
            damage = _describe_changes(state, saved_checksums)
        if damage is None:
            return state
        log.warning(
            "the checkpoint of step %d is damaged (%s): it is set aside, trying the previous one",
            step,
            damage,
        )
        # All processes agree on the damage; one renames the checkpoint while the others wait.
        if jax.process_index() == 0:
            _set_aside(directory, directory)
        multihost_utils.sync_global_devices(f"set step {step} aside")
        checkpoints.reload()
    damaged = sorted(p.name for p in checkpoints.directory.glob(f"*{_DAMAGED_SUFFIX}*"))
    if damaged:
        raise InputError(
            f"{checkpoints.directory} holds only damaged checkpoints ({some(damaged, 3)}): use "
            "another --workdir, or remove them to train from the beginning"
        )
    return None


def _agree_on_damage(
    checkpoint: epath.Path, abstract_state: TrainState, error: Exception | None
) -> str:
    """Return what is wrong with a checkpoint that some process could not read.

    Args:
        checkpoint: directory of one step.
        abstract_state: shapes and types of the state.
        error: the error with which reading failed in this process, if it did.

    Raises:
        InputError: it holds another model's state.
        MachineError: it cannot be read in some process for another reason than damage.
    """
    damage, failure = None, None
    try:
        if isinstance(error, InputError):
            raise error
        damage = find_damage(checkpoint, abstract_state)
        if damage is None and error is not None:
            fault = machine_fault(error)
            if fault is None or isinstance(error, jax.errors.JaxRuntimeError):
                raise error  # for example, it does not fit in the devices' memory
            raise MachineError(f"the checkpoint of step {checkpoint.name}: {fault}") from error
    except Exception as raised:
        failure = raised
    failing = np.flatnonzero(all_gather_flag(failure is not None))
    undamaged = np.flatnonzero(all_gather_flag(damage is None))
    if failure is not None:
        raise failure
    if len(failing):
        raise MachineError(
            f"the checkpoint of step {checkpoint.name} cannot be read by process "
            f"{', '.join(map(str, failing))}, whose log says why"
        )
    if damage is None or len(undamaged):
        raise MachineError(
            f"the checkpoint of step {checkpoint.name} is sound as read by process "
            f"{', '.join(map(str, undamaged))}, but damaged as read by the others"
            f"{f' ({damage})' if damage else ''}: it is left unchanged; expected storage with the "
            "same content for all hosts"
        )
    return damage


def _describe_changes(state: TrainState, saved: dict[str, int] | None) -> str | None:
    """Name the arrays whose checksums differ from the saved ones; None if there are none."""
    changed = changed_arrays(state, saved) if saved is not None else []
    return f"not as they were saved: {some(changed, 3)}" if changed else None


def _check_fits(checkpoint: epath.Path, abstract_state: TrainState) -> None:
    """Raise InputError if a checkpoint's metadata list other arrays than the state's.

    Moments of frozen parameters, which earlier versions saved, are no misfits.
    """
    with contextlib.closing(ocp.Checkpointer(ocp.PyTreeCheckpointHandler())) as reader:
        metadata = reader.metadata(checkpoint / STATE).item_metadata
    if metadata is None:
        return  # unreadable metadata: restoring raises the reason
    saved, expected = dict(_shapes(metadata.tree)), dict(_shapes(abstract_state))
    misfits = [
        f"{name} ({saved.get(name, 'none')} saved, {expected.get(name, 'none')} expected)"
        for name in dict.fromkeys((*expected, *saved))
        if saved.get(name) != expected.get(name) and not _is_frozen_moment(name, expected)
    ]
    if misfits:
        raise InputError(
            f"the checkpoint {checkpoint} holds another state than this run's: {some(misfits, 3)}. "
            "Use another --workdir, or the model and optimizer that it was started with"
        )


def _is_frozen_moment(name: str, expected: Container[str]) -> bool:
    """Whether an array is a moment of a parameter for which the expected state has none."""
    moment = re.fullmatch(r"opt_state\..*\.(?:mu|nu)\.(.*)", name)
    return moment is not None and name not in expected and f"params.{moment[1]}" in expected


def _shapes(tree: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield (dotted name, shape) of each array of a state."""
    return zip(parameter_names(tree), (tuple(x.shape) for x in jax.tree.leaves(tree)), strict=True)


def set_aside_damaged_metrics(directory: epath.Path, metric: str) -> None:
    """Rename damaged metrics files, because of which Orbax would refuse all checkpoints.

    The state beside them may be sound; it counts as not evaluated.

    Args:
        directory: directory of the checkpoints.
        metric: the metric that every metrics file must hold.
    """
    for metrics in directory.glob("*/metrics/metrics"):
        step = metrics.parent.parent.name
        if not step.isdigit():
            continue
        try:
            check_metrics(metrics, metric)
        except InputError as error:
            log.warning("the metrics of the checkpoint of step %s are damaged (%s)", step, error)
            _set_aside(metrics.parent, directory / f"{step}.metrics")


def _set_aside(damaged: epath.Path, target: epath.Path) -> None:
    """Rename a damaged directory to `target` plus a suffix, so its step can be saved again."""
    renamed = target.parent / (target.name + _DAMAGED_SUFFIX)
    number = 1
    while renamed.exists():
        number += 1
        renamed = target.parent / f"{target.name}{_DAMAGED_SUFFIX}{number}"
    damaged.rename(renamed)
    log.warning("the damaged files are kept as %s", renamed.name)
