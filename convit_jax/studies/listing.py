"""What a study would do: its cells, the steps of each, and the time that it would take."""

import json
import pathlib
from collections.abc import Callable, Iterator, Sequence

from convit_jax.studies.cells import Job
from convit_jax.studies.progress import Pace, in_words
from convit_jax.studies.results import read_result
from convit_jax.studies.running import steps_done


def list_jobs(
    jobs: Sequence[Job],
    workdir: Callable[[Job], pathlib.Path],
    pace: Pace,
    *,
    as_json: bool = False,
) -> Iterator[str]:
    """A line for each cell: its steps, how many are done and the time left; then the sum.

    Args:
        jobs: the cells.
        workdir: of each.
        pace: what is known of their speed.
        as_json: one JSON object a line, for programs, and no sum.
    """
    count, total = 0, 0.0
    known = True
    for job in jobs:
        directory = workdir(job)
        done = job.steps if read_result(directory) else steps_done(directory)
        seconds = pace.seconds_for([job], done)
        if done < job.steps:
            count, total, known = count + 1, total + (seconds or 0.0), known and seconds is not None
        if as_json:
            told = {"cell": job.cell.name, "examples": job.examples, "steps": job.steps}
            yield json.dumps(told | {"steps_done": done, "seconds_left": seconds})
        else:
            state = f"time {in_words(seconds)}" if done < job.steps else "finished"
            state = f"{done:,} done, {state}" if 0 < done < job.steps else state
            yield f"{job.cell.name}: {job.examples:,} examples, {job.steps:,} steps, {state}"
    if not as_json:
        yield f"{len(jobs)} cells, {count} to be trained, time {in_words(total if known else None)}"
