"""Results of a study's cells, and their means over seeds."""

import dataclasses
import json
import math
import pathlib
import statistics
from collections.abc import Iterable, Sequence

from scipy import special

from convit_jax.analysis.findings import as_csv
from convit_jax.analysis.history import read_metrics
from convit_jax.errors import RunError
from convit_jax.studies.cells import Job
from convit_jax.system.whole_file import write_whole

_FILE = "result.json"
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Result:
    """Result of a finished cell: a row of `results.csv`.

    Attributes:
        cell: name of its directory.
        model, variant, fraction, seed: the cell; for `variant` see `Variant.label`.
        locality_strength, gpsa_layers: those of its model; the strength is None without a
            convolutional initialisation.
        examples: number of training examples.
        steps, seen: numbers of training steps and of images seen, including repetitions.
        top1, top5, loss: accuracies in [0, 1] and cross-entropy of the last evaluation, of the
            averaged parameters if config.ema_decay is set.
        best_top1: best of all evaluations, hence selected on the evaluation images.
        classes: number of classes.
        seconds, timed_steps: duration of the last `timed_steps` steps, including evaluations,
            checkpoints and compilation.
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
    """Mean over seeds, with its confidence interval.

    Attributes:
        mean: mean of the values.
        half_width: half the width of the 95 % confidence interval of the mean, by Student's t; None
            for a single value.
        count: number of values.
    """

    mean: float
    half_width: float | None
    count: int

    @classmethod
    def from_values(cls, values: Sequence[float]) -> "Mean":
        """Return the mean of at least one value."""
        half_width = None
        if len(values) > 1:
            quantile = special.stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)
            half_width = float(quantile) * statistics.stdev(values) / math.sqrt(len(values))
        return cls(statistics.fmean(values), half_width, len(values))

    @property
    def beyond_noise(self) -> bool:
        """Whether the confidence interval does not contain 0."""
        return self.half_width is not None and abs(self.mean) > self.half_width


def write_result(directory: pathlib.Path, job: Job, *, seconds: float, timed_steps: int) -> Result:
    """Write the result of a cell to its workdir, which marks the cell as finished.

    Raises:
        InputError: a line of the run's metrics is damaged.
        RunError: the run's metrics have no evaluation of its last step.
    """
    records = read_metrics(directory)
    evaluations = {record["step"]: record for record in records if "eval/accuracy" in record}
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
    write_whole(directory / _FILE, text)
    return result


def read_result(directory: pathlib.Path) -> Result | None:
    """Return the result of a cell, or None if it is not finished.

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
            f"{file} is damaged ({error}): delete it, and the same command reads the result again"
        ) from error


def read_results(directories: Iterable[pathlib.Path]) -> list[Result]:
    """Return the results of all finished cells, sorted by model, variant, fraction and seed."""
    results = filter(None, map(read_result, directories))
    return sorted(results, key=lambda r: (r.model, r.variant, r.fraction, r.seed))


def results_csv(results: Sequence[Result]) -> str:
    """Return the content of `results.csv`: a row for each cell."""
    return as_csv([dataclasses.asdict(result) for result in results])
