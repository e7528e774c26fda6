"""The workdir of a run: its lock and config, and the log lines at its beginning and end."""

import contextlib
import dataclasses
import importlib.metadata
import json
import logging
import pathlib
import platform
import re
import shlex
import time
from collections.abc import Iterator

import jax
import orbax.checkpoint as ocp
from clu import parameter_overview
from etils import epath

from convit_jax.config.files import split_argument
from convit_jax.distributed.sharding import measure_sharded_size
from convit_jax.errors import InputError
from convit_jax.system.file_lock import LockedError, NoLocksError, lock_file
from convit_jax.system.paths import output_directory
from convit_jax.system.whole_file import write_whole
from convit_jax.training.experiment import Experiment
from convit_jax.training.placement import Placement
from convit_jax.training.step import TrainState

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets")

log = logging.getLogger(__name__)


def default_workdir(config: str) -> str:
    """Return the workdir of a run that names none.

    Args:
        config: as on the command line; `configs/convit_s.py:fraction=0.1` has the workdir
            `runs/convit_s-fraction=0.1`.
    """
    file, argument = split_argument(config)
    name = pathlib.PurePath(file).stem + (f"-{argument}" if argument else "")
    return f"runs/{re.sub('[^a-zA-Z0-9.=+-]+', '_', name)}"


def open_workdir(workdir: str) -> epath.Path:
    """Return the directory of a run, created if it does not exist.

    Raises:
        InputError: it cannot be created or written to.
        MachineError: the machine failed, or the storage cannot be reached.
    """
    directory = output_directory(workdir, "--workdir")
    # Orbax accepts absolute paths only.
    return directory if "://" in str(directory) else directory.resolve()


@contextlib.contextmanager
def lock_workdir(directory: epath.Path) -> Iterator[None]:
    """Prevent a second run from starting in the same workdir during the block.

    The first process holds a lock on a file in it, which the system releases however the process
    ends. File systems without locks (gs://, some network file systems) are not protected.

    Raises:
        InputError: another run holds the lock.
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
                "expected one run at a time per directory"
            ) from error
        except NoLocksError as error:
            log.info("%s: not locked against a second run (%s)", directory, error)
        yield


def write_config(directory: epath.Path, experiment: Experiment) -> None:
    """Write the resolved config and the packages' versions as config.json.

    Raises:
        InputError: it cannot be written.
        MachineError: a fault of the machine prevents writing it.
    """
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    record = dataclasses.asdict(experiment.config) | {
        "versions": versions | {"python": platform.python_version()}
    }
    text = json.dumps(record, indent=2) + "\n"
    write_whole(directory / "config.json", text)


def log_beginning(
    experiment: Experiment, state: TrainState, start: int, placement: Placement
) -> None:
    """Log what is about to run: parameters, devices, the share of each device, and steps."""
    config = experiment.config
    if start == 0:
        table = parameter_overview.get_parameter_overview(
            state.params, include_stats=False, max_lines=None
        )
        log.info("parameters of %s:\n%s", config.model.name, table)
    log.info(
        "%d device(s) (%s) in %d process(es), mesh data=%d x fsdp=%d; global batch %d: "
        "%d a process, %d a device",
        placement.mesh.size,
        placement.mesh.devices.flat[0].device_kind,
        jax.process_count(),
        *placement.mesh.devices.shape,
        config.batch_size,
        config.batch_size // jax.process_count(),
        config.batch_size // placement.mesh.size,
    )
    log.info("parameters       %s", measure_sharded_size(state.params, placement.state.params))
    log.info(
        "optimizer state  %s", measure_sharded_size(state.opt_state, placement.state.opt_state)
    )
    log.info(
        "steps %d to %d, %d an epoch of %d examples; the first step compiles",
        start + 1,
        experiment.total_steps,
        experiment.order.steps_per_epoch,
        experiment.order.num_examples,
    )


def log_end(directory: epath.Path, checkpoints: ocp.CheckpointManager, eval_data: str) -> None:
    """Log where the results are and the next commands to try, on the evaluation data."""
    best = checkpoints.best_step()
    if best is not None:
        accuracy = checkpoints.metrics(best)["accuracy"]
        log.info("best checkpoint: step %d, accuracy %.2f%%", best, 100 * accuracy)
    log.info("checkpoints    %s", checkpoints.directory)
    log.info("metrics        %s", directory / "metrics.jsonl")
    log.info("configuration  %s", directory / "config.json")
    log.info("next           tensorboard --logdir %s", directory)
    log.info("               python -m convit_jax.predict --weights %s IMAGE", directory)
    log.info(
        "               python -m convit_jax.analyze --weights %s --images %s --out %s --overlay",
        directory,
        shlex.quote(eval_data),
        directory / "analysis",
    )
