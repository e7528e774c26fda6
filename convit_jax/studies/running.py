"""Training the cells of a study, one after another, each in its workdir."""

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
from convit_jax.studies.claims import TakenError, claim
from convit_jax.studies.progress import Overview, Pace, in_words
from convit_jax.studies.results import Result, read_result, write_result

log = logging.getLogger(__name__)


@dataclasses.dataclass
class Ending:
    """How the cells of a worker ended.

    Attributes:
        failed: the cells that could not go on, each with its reason.
        taken: those that other processes were at work on, each with the other's name.
        stopped_by: number of the signal that ended it, or None.
    """

    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    taken: dict[str, str] = dataclasses.field(default_factory=dict)
    stopped_by: int | None = None


def run_jobs(
    jobs: Sequence[Job],
    workdir: Callable[[Job], pathlib.Path],
    pace: Pace,
    finished: Callable[[Result], None],
) -> Ending:
    """Trains all cells that are not finished, in this process.

    Each is an ordinary run, resumed if it was begun; its log goes to `log.txt` in its workdir. A
    cell that fails is told, and the others go on.

    Args:
        jobs: the cells.
        workdir: of each.
        pace: what is known of their speed; learns from every cell.
        finished: told of each cell that this finishes.
    """
    ending = Ending()
    todo = [job for job in jobs if read_result(workdir(job)) is None]
    with Overview(pace) as screen:
        log.info("%d cells, %d of them finished", len(jobs), len(jobs) - len(todo))
        for number, job in enumerate(todo):
            name, directory = job.cell.name, workdir(job)
            screen.begin(number, todo)
            try:
                with claim(directory):
                    if read_result(directory) is not None:
                        continue  # another worker was faster
                    left = in_words(pace.seconds_for(todo[number:], steps_done(directory)))
                    log.info("cell %d of %d: %s; all left: %s", number + 1, len(todo), name, left)
                    result, ending.stopped_by = _train(job, directory, screen)
            except TakenError as error:
                log.info("%s is being trained by %s, and left to it", name, error)
                ending.taken[name] = str(error)
                continue
            except (RunError, InputError) as error:
                log.error("%s failed: %s", name, error)
                ending.failed[name] = str(error)
                continue
            if result is not None:
                pace.add(job.cell.model, result.timed_steps, result.seconds)
                finished(result)
                took = in_words(result.seconds)
                log.info("%s: top-1 %.2f%%, in %s", name, 100 * result.top1, took)
            if ending.stopped_by is not None:
                log.info("stopped by %s in %s", signal.Signals(ending.stopped_by).name, name)
                break
    return ending


def _train(job: Job, directory: pathlib.Path, screen: Overview) -> tuple[Result | None, int | None]:
    """What a cell came to, if it was finished, and the signal that came meanwhile, if one did."""
    # TensorFlow, which writes the events, takes seconds to import; a study that is refused or only
    # listed does without.
    from convit_jax.training import loop  # noqa: PLC0415

    start, began = steps_done(directory), time.monotonic()
    with _logged(directory / "log.txt"):
        try:
            outcome = loop.train(job.config, str(directory), screen)
        finally:
            # What a cell held on the devices is in cycles, and a full device calls no collector.
            gc.collect()
    if outcome.stopped_by is not None:
        return None, outcome.stopped_by
    seconds = time.monotonic() - began
    result = write_result(directory, job, seconds=seconds, timed_steps=job.steps - start)
    return result, outcome.signal


def steps_done(directory: pathlib.Path) -> int:
    """Steps of a cell's newest checkpoint."""
    names = (path.name for path in directory.glob("checkpoints/*"))
    return max((int(name) for name in names if name.isdigit()), default=0)


@contextlib.contextmanager
def _logged(path: pathlib.Path) -> Iterator[None]:
    """Writes all log lines of the package to a file too."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    package = logging.getLogger("convit_jax")
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)
        handler.close()
