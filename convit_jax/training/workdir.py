"""The directory of a run: its config, and what is said of it at the beginning and the end."""

import contextlib
import dataclasses
import importlib.metadata
import json
import logging
import pathlib
import platform
import time
from collections.abc import Iterator

import jax
import orbax.checkpoint as ocp
from clu import parameter_overview
from etils import epath

from convit_jax.distributed.sharding import measure_spread
from convit_jax.errors import InputError
from convit_jax.system.file_lock import LockedError, NoLocksError, lock_file
from convit_jax.system.paths import output_directory
from convit_jax.system.whole_file import write_whole
from convit_jax.training.experiment import Experiment
from convit_jax.training.placement import Placement
from convit_jax.training.step import TrainState

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets")

log = logging.getLogger(__name__)


def open_workdir(workdir: str) -> epath.Path:
    """The directory of a run, made if it is not there.

    Raises:
        InputError: it cannot be made or written to.
        MachineError: the machine failed, or the storage cannot be reached.
    """
    directory = output_directory(workdir, "--workdir")
    # Orbax takes absolute paths only.
    return directory if "://" in str(directory) else directory.resolve()


@contextlib.contextmanager
def claimed(directory: epath.Path) -> Iterator[None]:
    """Keeps the directory of a run from a second start as long as this lasts.

    One process of a run holds a lock on a file in it, which the system takes back however it ends.
    Where the file system has no locks (gs://, some network file systems) nothing is kept.

    Raises:
        InputError: another run holds it.
    """
    if jax.process_index() or "://" in str(directory):
        yield
        return
    with contextlib.ExitStack() as stack:
        path = pathlib.Path(directory, ".lock")
        try:
            stack.enter_context(lock_file(path, f", begun {time.ctime()}"))
        except LockedError as error:
            raise InputError(
                f"--workdir={directory} is in use by {error}: "
                "expected one run at a time in a directory"
            ) from error
        except NoLocksError as error:
            log.info("%s: no lock against a second start (%s)", directory, error)
        yield


def write_config(directory: epath.Path, experiment: Experiment) -> None:
    """Leaves the resolved config, with the packages' versions, as config.json.

    Raises:
        InputError: it cannot be written.
        MachineError: the machine does not let it be.
    """
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    record = dataclasses.asdict(experiment.config) | {
        "versions": versions | {"python": platform.python_version()}
    }
    text = json.dumps(record, indent=2) + "\n"
    write_whole(directory / "config.json", lambda draft: draft.write_text(text))


def log_beginning(experiment: Experiment, state: TrainState, start: int, placed: Placement) -> None:
    """Logs what is about to run: parameters, steps, devices and what of it falls on each."""
    config = experiment.config
    if start == 0:
        table = parameter_overview.get_parameter_overview(
            state.params, include_stats=False, max_lines=None
        )
        log.info("parameters of %s:\n%s", config.model.name, table)
    log.info(
        "%d device(s) (%s) in %d process(es), mesh data=%d x fsdp=%d; global batch %d: "
        "%d a process, %d a device",
        placed.mesh.size,
        placed.mesh.devices.flat[0].device_kind,
        jax.process_count(),
        *placed.mesh.devices.shape,
        config.batch_size,
        config.batch_size // jax.process_count(),
        config.batch_size // placed.mesh.size,
    )
    log.info("parameters       %s", measure_spread(state.params, placed.state.params))
    log.info("optimizer state  %s", measure_spread(state.opt_state, placed.state.opt_state))
    log.info(
        "steps %d to %d, %d an epoch of %d examples; the first step compiles",
        start + 1,
        experiment.total_steps,
        experiment.order.steps_per_epoch,
        experiment.order.num_examples,
    )


def log_end(directory: epath.Path, checkpoints: ocp.CheckpointManager) -> None:
    """Logs where everything is and the next command to try."""
    best = checkpoints.best_step()
    if best is not None:
        accuracy = checkpoints.metrics(best)["accuracy"]
        log.info("best checkpoint: step %d, accuracy %.2f%%", best, 100 * accuracy)
    log.info("checkpoints    %s", checkpoints.directory)
    log.info("metrics        %s", directory / "metrics.jsonl")
    log.info("configuration  %s", directory / "config.json")
    log.info("next           tensorboard --logdir %s", directory)
    log.info("               python -m convit_jax.predict --weights %s IMAGE", directory)
