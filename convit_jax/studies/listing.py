"""List of a study's cells, with the steps and the remaining time of each (--dry-run)."""

import json
import pathlib
from collections.abc import Callable, Iterator, Sequence

from convit_jax.studies.cells import Job
from convit_jax.studies.progress import Pace, duration_or_unknown
from convit_jax.studies.results import read_result
from convit_jax.studies.running import completed_steps


def list_jobs(
    jobs: Sequence[Job],
    workdir: Callable[[Job], pathlib.Path],
    pace: Pace,
    *,
    as_json: bool = False,
) -> Iterator[str]:
    """Yield a line for each cell (steps, completed steps, remaining time), then the total.

    Args:
        jobs: the cells.
        workdir: returns the workdir of a cell.
        pace: duration of a step.
        as_json: one JSON object for each cell, and no total.
    """
    num_unfinished, total = 0, 0.0
    is_known = True
    for job in jobs:
        directory = workdir(job)
        completed = job.steps if read_result(directory) else completed_steps(directory)
        seconds = pace.seconds_for([job], completed)
        if completed < job.steps:
            num_unfinished += 1
            total += seconds or 0.0
            is_known = is_known and seconds is not None
        if as_json:
            record = {"cell": job.cell.name, "examples": job.examples, "steps": job.steps}
            yield json.dumps(record | {"steps_done": completed, "seconds_left": seconds})
        else:
            state = f"time {duration_or_unknown(seconds)}" if completed < job.steps else "finished"
            if 0 < completed < job.steps:
                state = f"{completed:,} completed, {state}"
            yield f"{job.cell.name}: {job.examples:,} examples, {job.steps:,} steps, {state}"
    if not as_json:
        time = duration_or_unknown(total if is_known else None)
        yield f"{len(jobs)} cells, {num_unfinished} to be trained, time {time}"
