"""The cells of a study: its training runs, their names and their configs."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

from convit_jax.config import Config, duration_in_steps
from convit_jax.errors import InputError, naming
from convit_jax.studies.variants import (
    Variant,
    apply_variant,
    grid_variant,
    row_variant,
    unchanged_variant,
)
from convit_jax.training import Experiment, make_experiment, open_training_data
from convit_jax.training.distillation import open_config_teacher


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        model: name of the model in `--models`.
        variant: change of the model.
        fraction: fraction of each class's training examples.
        seed: seed of the run.
    """

    model: str
    variant: Variant
    fraction: float
    seed: int

    @property
    def name(self) -> str:
        """Name of its directory, such as convit_row-b_fraction0.1_seed0."""
        change = self.variant.label
        if self.variant.row:
            change = "" if self.variant.unchanged else f"row-{self.variant.row}"
        parts = (as_file_name(self.model), change, f"fraction{self.fraction:.12g}")
        return "_".join(filter(None, [*parts, f"seed{self.seed}"]))


@dataclasses.dataclass(frozen=True)
class Job:
    """A cell that is ready to be trained.

    Attributes:
        cell: the cell.
        config: complete config of the run, with all durations in steps.
        steps: number of training steps.
        examples: number of training examples.
        classes: number of classes.
        locality_strength, gpsa_layers: those of its model; the strength is None without a
            convolutional initialisation.
    """

    cell: Cell
    config: Config
    steps: int
    examples: int
    classes: int
    locality_strength: float | None
    gpsa_layers: int


def list_cells(
    configs: Mapping[str, Config],
    fractions: Sequence[float],
    seeds: int,
    rows: Sequence[str] = (),
    locality_strengths: Sequence[float] = (),
    gpsa_layers: Sequence[int] = (),
) -> list[Cell]:
    """Return all cells, seed by seed, so that a study stopped early can still be compared.

    Args:
        configs: config of each model by name; seeds count from the config's seed.
        fractions: fractions of the training examples.
        seeds: number of seeds.
        rows: rows of Table 3; none: the unchanged models.
        locality_strengths, gpsa_layers: axes of Fig. 8a; if only one is given, the model's value is
            used for the other.

    Raises:
        InputError: an unknown row, or a variant of a model without GPSA layers.
    """
    variants: dict[str, list[Variant]] = {}
    for model, config in configs.items():
        variants[model] = [row_variant(row, config, model) for row in rows]
        if locality_strengths or gpsa_layers:
            variants[model] += [
                grid_variant(strength, layers, config, model)
                for strength in locality_strengths or (None,)
                for layers in gpsa_layers or (None,)
            ]
        variants[model] = variants[model] or [unchanged_variant(config)]
    cells = (
        Cell(model, variant, fraction, configs[model].seed + i)
        for i in range(seeds)
        for fraction in fractions
        for model in configs
        for variant in variants[model]
    )
    return list(dict.fromkeys(cells))  # without GPSA layers, all strengths give the same cell


def make_jobs(configs: Mapping[str, Config], cells: Iterable[Cell]) -> list[Job]:
    """Return the jobs of all cells, after checking that each can be trained.

    Raises:
        InputError: a fraction leaves a class without examples, the dataset is smaller than a
            batch, a variant does not fit its model, or a teacher cannot be used.
    """
    cells = list(cells)
    data = {f: _open_data(configs, f) for f in {1.0} | {cell.fraction for cell in cells}}
    full_size, class_names = data[1.0]
    classes = len(class_names)
    for config in {config.distill.teacher: config for config in configs.values()}.values():
        open_config_teacher(config, classes, class_names)  # otherwise each cell would fail
    smallest = min(cell.fraction for cell in cells)
    experiments: dict[tuple[str, Variant], tuple[Config, Experiment]] = {}
    jobs = []
    for cell in cells:
        key = (cell.model, cell.variant)
        if key not in experiments:
            config = apply_variant(configs[cell.model], cell.variant)
            config = _with_durations_in_steps(config, full_size)
            config = _of_fraction(config, smallest)
            with naming(f"cell {cell.name}"):
                experiment = make_experiment(
                    config, num_examples=data[smallest][0], num_classes=classes
                )
            experiments[key] = config, experiment
        config, experiment = experiments[key]
        a = experiment.architecture
        jobs.append(
            Job(
                cell=cell,
                config=dataclasses.replace(_of_fraction(config, cell.fraction), seed=cell.seed),
                steps=experiment.total_steps,
                examples=data[cell.fraction][0],
                classes=classes,
                locality_strength=a.locality_strength if a.gpsa_layers and a.conv_init else None,
                gpsa_layers=a.gpsa_layers,
            )
        )
    return jobs


def _with_durations_in_steps(config: Config, examples: int) -> Config:
    """Return the config with all durations in steps, taking epochs as those of the full dataset.

    So runs of all fractions see the same number of images: as in the paper, a fraction f is trained
    for 1/f as many epochs. The paper does not mention the warm-up; it is kept as long too, so that
    cells differ only in their images.
    """
    steps_per_epoch = max(1, examples // config.batch_size)

    def steps(name: str, minimum: int) -> str:
        return f"{max(minimum, duration_in_steps(config, name, steps_per_epoch))} steps"

    return dataclasses.replace(
        config,
        train_for=steps("train_for", 1),
        eval_every=steps("eval_every", 1),
        log_every=steps("log_every", 1),
        optimizer=dataclasses.replace(config.optimizer, warmup=steps("optimizer.warmup", 0)),
        checkpoint=dataclasses.replace(config.checkpoint, every=steps("checkpoint.every", 1)),
    )


def _of_fraction(config: Config, fraction: float) -> Config:
    """Return the config of a fraction; a batch may have its images several times."""
    data = dataclasses.replace(config.data, fraction=fraction)
    return dataclasses.replace(config, data=data, keep_budget=True)


def jobs_of_worker(jobs: Sequence[Job], worker: int, workers: int) -> list[Job]:
    """Return the jobs of one of several workers, counted from 1: every `workers`-th job."""
    return list(jobs[worker - 1 :: workers])


def _open_data(configs: Mapping[str, Config], fraction: float) -> tuple[int, tuple[str, ...]]:
    """Return the number of training examples and the classes; all models share the same data."""
    config = next(iter(configs.values()))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, fraction=fraction))
    with naming(f"--fractions={fraction:g}"):
        examples, _ = open_training_data(config)
        batch_size = max(config.batch_size for config in configs.values())
        if fraction == 1 and batch_size > len(examples):
            raise InputError(
                f"config.batch_size={batch_size} is more than the {len(examples)} training examples"
            )
    return len(examples), tuple(examples.class_names)


def as_file_name(text: str) -> str:
    """Return the text with characters that do not belong in a file name replaced."""
    return re.sub(r"[^\w.=-]", "-", text)
