"""What the cells of a study came to: a record each, and means over seeds."""

import dataclasses
import json
import pathlib
import statistics
from collections.abc import Iterable, Sequence

from convit_jax.analysis.findings import as_csv
from convit_jax.analysis.history import read_metrics
from convit_jax.errors import RunError
from convit_jax.studies.cells import Job
from convit_jax.system.whole_file import write_whole

_FILE = "result.json"


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished cell: a row of `results.csv`.

    Attributes:
        cell: name of its directory.
        model, variant, fraction, seed: which cell it is; for `variant` see `Variant.label`.
        locality_strength, gpsa_layers: of its model; the former None where it means nothing.
        examples: training images that it had.
        steps, seen: how many steps it was trained for, and images seen, repetitions among them.
        top1, top5, loss: of the last evaluation, shares in [0, 1] and cross-entropy; of the running
            average of the parameters where there is one (config.ema_decay).
        best_top1: of all its evaluations; it was chosen by the very images that it is measured on.
        classes: how many there are to tell apart.
        seconds, timed_steps: how long the last so many steps took, evaluations, checkpoints and
            compiling included.
    """

    cell: str
    model: str
    variant: str
    fraction: float
    seed: int
    locality_strength: float | None
    gpsa_layers: int
    examples: int
    steps: int
    seen: int
    top1: float
    top5: float
    loss: float
    best_top1: float
    classes: int
    seconds: float
    timed_steps: int


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean over seeds.

    Attributes:
        mean: of the values.
        spread: their standard deviation (n - 1); None of a single value.
        count: how many.
    """

    mean: float
    spread: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """The mean of at least one value."""
        spread = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), spread, len(values))


def write_result(directory: pathlib.Path, job: Job, *, seconds: float, timed_steps: int) -> Result:
    """Leaves what a cell came to in its workdir, which makes it a finished one.

    Raises:
        InputError: a line of the run's metrics is damaged.
        RunError: the run left no evaluation of its last step.
    """
    told = read_metrics(directory)
    evaluations = {record["step"]: record for record in told if "eval/accuracy" in record}
    if job.steps not in evaluations:
        raise RunError(f"{directory}/metrics.jsonl has no evaluation of step {job.steps}")
    last = evaluations[job.steps]
    cell = job.cell
    result = Result(
        cell=cell.name,
        model=cell.model,
        variant=cell.variant.label,
        fraction=cell.fraction,
        seed=cell.seed,
        locality_strength=job.locality_strength,
        gpsa_layers=job.gpsa_layers,
        examples=job.examples,
        steps=job.steps,
        seen=job.steps * job.config.batch_size,
        top1=last["eval/accuracy"],
        top5=last["eval/accuracy_top5"],
        loss=last["eval/loss"],
        best_top1=max(record["eval/accuracy"] for record in evaluations.values()),
        classes=job.classes,
        seconds=round(seconds, 1),
        timed_steps=timed_steps,
    )
    text = json.dumps(dataclasses.asdict(result), indent=2) + "\n"
    write_whole(directory / _FILE, lambda file: file.write_text(text))
    return result


def read_result(directory: pathlib.Path) -> Result | None:
    """What a cell came to; None as long as it is not finished.

    Raises:
        RunError: the file is damaged.
    """
    file = directory / _FILE
    if not file.exists():
        return None
    try:
        return Result(**json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        raise RunError(
            f"{file} is damaged ({error}): delete it, and the cell's last evaluation is read again"
        ) from error


def read_results(directories: Iterable[pathlib.Path]) -> list[Result]:
    """Of all finished cells, ordered by model, variant, fraction and seed."""
    found = filter(None, map(read_result, directories))
    return sorted(found, key=lambda r: (r.model, r.variant, r.fraction, r.seed))


def results_csv(results: Sequence[Result]) -> str:
    """`results.csv`: a row for each cell."""
    return as_csv([dataclasses.asdict(result) for result in results])
