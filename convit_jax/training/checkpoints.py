"""Saving the state of a run with Orbax.

A checkpoint holds the state, the config it belongs to and the model card, so that it can be used
without the rest of the workdir.
"""

import contextlib
import dataclasses
import errno
import logging
import shutil
import sys
from collections.abc import Iterator

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from convit_jax.config import CheckpointConfig, Config
from convit_jax.errors import RunError, first_line
from convit_jax.training.integrity import CHECKSUMS, checksums
from convit_jax.training.restoration import set_aside_damaged_metrics
from convit_jax.training.resumption import DATA, DataRecord
from convit_jax.training.step import TrainState
from convit_jax.weights import Card
from convit_jax.weights.model_checkpoints import CARD, CONFIG, STATE, report_unraisable

_BEST_METRIC = "accuracy"

log = logging.getLogger(__name__)


def _score(metrics: dict[str, float]) -> float:
    return metrics[_BEST_METRIC]


def silence_checkpoint_logging() -> None:
    """Hide everything but the raised error when a checkpoint cannot be written.

    Orbax also logs the error that it raises, through absl, and asyncio logs the errors of the
    remaining writes. TensorStore's threads go on for a moment after nothing waits for them.
    """
    for logger in ("absl", "asyncio"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    sys.unraisablehook = report_unraisable


def open_checkpoints(directory: epath.Path, config: CheckpointConfig) -> ocp.CheckpointManager:
    """Open the checkpoints in a directory, which retain the latest and the most accurate."""
    policies: list[checkpoint_managers.PreservationPolicy] = [
        checkpoint_managers.LatestN(config.keep_latest)
    ]
    if config.keep_best:
        policies.append(
            checkpoint_managers.BestN(
                get_metric_fn=_score, n=config.keep_best, keep_checkpoints_without_metrics=False
            )
        )
    if jax.process_index() == 0:
        set_aside_damaged_metrics(directory, _BEST_METRIC)
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
    data_record: DataRecord,
) -> None:
    """Save the state after `step` steps; writing continues in the background.

    Args:
        checkpoints: the checkpoints of the run.
        state: the state to save; its buffers may be donated once this returns.
        step: number of completed steps.
        config: the run's configuration, saved beside the state.
        card: the model card, saved beside the state.
        accuracy: the state's evaluation accuracy, if it was evaluated.
        data_record: what to remember of the training data.

    Raises:
        RunError: this checkpoint or the previous one could not be written.
    """
    _check_free_space(checkpoints, state)
    try:
        items = {
            STATE: ocp.args.StandardSave(state),
            CONFIG: ocp.args.JsonSave(dataclasses.asdict(config)),
            CARD: ocp.args.JsonSave(card.as_json()),
            DATA: ocp.args.JsonSave(dataclasses.asdict(data_record)),
            CHECKSUMS: ocp.args.JsonSave(checksums(state)),
        }
        metrics = None if accuracy is None else {_BEST_METRIC: accuracy}
        checkpoints.save(step, args=ocp.args.Composite(**items), metrics=metrics)
    except Exception as error:  # any library below Orbax may raise
        raise _write_error(checkpoints, error) from error


def is_best(
    checkpoints: ocp.CheckpointManager, config: CheckpointConfig, accuracy: float | None
) -> bool:
    """Return whether an evaluation beats all saved ones and the best checkpoints are kept."""
    if accuracy is None or not config.keep_best:
        return False
    best = checkpoints.best_step()
    return best is None or accuracy > _score(checkpoints.metrics(best))


def evaluation_missing(checkpoints: ocp.CheckpointManager, step: int, every: int) -> bool:
    """Return whether the run stopped after `step` steps before an evaluation due there."""
    return step > 0 and step % every == 0 and checkpoints.metrics(step) is None


def finish_saving(checkpoints: ocp.CheckpointManager) -> None:
    """Wait for the checkpoint being written.

    Raises:
        RunError: it could not be written.
    """
    try:
        checkpoints.wait_until_finished()
    except Exception as error:  # any library below Orbax may raise
        raise _write_error(checkpoints, error) from error


@contextlib.contextmanager
def closing_checkpoints(checkpoints: ocp.CheckpointManager) -> Iterator[None]:
    """Close the checkpoints on exit; an error of the block is not replaced by one from closing."""
    try:
        yield
    except BaseException:
        try:
            checkpoints.close()
        except Exception as error:
            log.debug("closing the checkpoints failed, too: %s", first_line(error))
        raise
    checkpoints.close()


def _check_free_space(checkpoints: ocp.CheckpointManager, state: TrainState) -> None:
    """Raise RunError before writing anything if a local disk has no space for a checkpoint."""
    if "://" in str(checkpoints.directory):
        return
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    free = shutil.disk_usage(checkpoints.directory).free
    if free < needed:
        finish_saving(checkpoints)  # the previous one may still be being written
        message = f"no space is left: {needed / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free"
        raise _write_error(checkpoints, OSError(errno.ENOSPC, message))


def _write_error(checkpoints: ocp.CheckpointManager, error: Exception) -> RunError:
    checkpoints.reload()
    steps = ", ".join(f"step {step}" for step in sorted(checkpoints.all_steps()))
    return RunError(
        f"a checkpoint could not be written to {checkpoints.directory} ({first_line(error)}); "
        f"kept: {steps or 'none'}. Once that is fixed, start again with the same --workdir"
    )
