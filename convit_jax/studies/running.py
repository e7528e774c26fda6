"""Training of a study's cells, one after another, each in its workdir."""

import contextlib
import dataclasses
import gc
import logging
import pathlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence

from convit_jax.errors import InputError, RunError
from convit_jax.studies.cells import Job
from convit_jax.studies.claims import lock_cell
from convit_jax.studies.progress import Pace, StudyScreen, duration_or_unknown
from convit_jax.studies.results import Result, read_result, write_result
from convit_jax.system.file_lock import LockedError

log = logging.getLogger(__name__)


@dataclasses.dataclass
class Outcome:
    """Outcome of training a worker's cells.

    Attributes:
        failed: reason of failure by name of the cell.
        stopped_by: number of the signal that stopped the worker, or None.
    """

    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    stopped_by: int | None = None


def run_jobs(
    jobs: Sequence[Job],
    workdir: Callable[[Job], pathlib.Path],
    pace: Pace,
    on_finished: Callable[[Result], object],
) -> Outcome:
    """Train all unfinished cells in this process.

    Each is an ordinary run, resumed if it was started before; its log goes to `log.txt` in its
    workdir. If a cell fails, this is logged, and the others are trained.

    Args:
        jobs: the cells.
        workdir: returns the workdir of a cell.
        pace: duration of a step, updated by each finished cell.
        on_finished: called with the result of each cell that this function finishes.
    """
    outcome = Outcome()
    unfinished = [job for job in jobs if read_result(workdir(job)) is None]
    screen = StudyScreen(pace)
    with screen:
        log.info("%d cells, %d of them finished", len(jobs), len(jobs) - len(unfinished))
        for index, job in enumerate(unfinished):
            name, directory = job.cell.name, workdir(job)
            screen.begin_cell(index, unfinished)
            try:
                with lock_cell(directory):
                    if read_result(directory) is not None:
                        continue  # finished by another worker in the meantime
                    seconds = pace.seconds_for(unfinished[index:], completed_steps(directory))
                    left = duration_or_unknown(seconds)
                    log.info("cell %d of %d: %s; all left: %s",
                             index + 1, len(unfinished), name, left)  # fmt: skip
                    result, outcome.stopped_by = _train(job, directory, screen)
            except LockedError as error:
                log.info("%s is being trained by %s: skipped", name, error)
                continue
            except (RunError, InputError) as error:
                log.error("%s failed: %s", name, error)
                outcome.failed[name] = str(error)
                continue
            if result is not None:
                pace.add(job.cell.model, result.timed_steps, result.seconds)
                on_finished(result)
                duration = duration_or_unknown(result.seconds)
                log.info("%s: top-1 %.2f%%, in %s", name, 100 * result.top1, duration)
            if outcome.stopped_by is not None:
                log.info("stopped by %s in %s", signal.Signals(outcome.stopped_by).name, name)
                break
    return outcome


def _train(
    job: Job, directory: pathlib.Path, screen: StudyScreen
) -> tuple[Result | None, int | None]:
    """Train a cell; return its result if it was finished, and the signal received, if any."""
    # TensorFlow, which writes the event files, takes seconds to import: not needed for error
    # messages and dry runs.
    from convit_jax.training import loop  # noqa: PLC0415

    first_step, start = completed_steps(directory), time.monotonic()
    with _logging_to(directory / "log.txt"):
        try:
            outcome = loop.train(job.config, str(directory), screen)
        finally:
            # A cell's arrays are in reference cycles, and a full device does not trigger the
            # garbage collector.
            gc.collect()
    if outcome.stopped_by is not None:
        return None, outcome.stopped_by
    seconds = time.monotonic() - start
    result = write_result(directory, job, seconds=seconds, timed_steps=job.steps - first_step)
    return result, outcome.signal


def completed_steps(directory: pathlib.Path) -> int:
    """Return the step of a cell's newest checkpoint, or 0."""
    names = (path.name for path in directory.glob("checkpoints/*"))
    return max((int(name) for name in names if name.isdigit()), default=0)


@contextlib.contextmanager
def _logging_to(path: pathlib.Path) -> Iterator[None]:
    """Also write all log lines of the package to a file."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    package = logging.getLogger("convit_jax")
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)
        handler.close()
