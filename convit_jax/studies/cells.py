"""The cells of a study: which runs there are, what each is called, and the config of each."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

from convit_jax.config import Config, duration_in_steps
from convit_jax.errors import InputError
from convit_jax.studies.variants import Variant, as_it_is, grid_variant, row_variant, varied
from convit_jax.training import Experiment, make_experiment, open_training_data


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        model: as `--models` calls it.
        variant: what is changed in it.
        fraction: share of each class's training examples.
        seed: the run's.
    """

    model: str
    variant: Variant
    fraction: float
    seed: int

    @property
    def name(self) -> str:
        """Of its directory: convit_row-b_fraction0.1_seed0."""
        change = self.variant.label
        if self.variant.row:
            change = "" if self.variant.unchanged else f"row-{self.variant.row}"
        parts = [in_a_file_name(self.model), change, f"fraction{self.fraction:.12g}"]
        return "_".join(filter(None, [*parts, f"seed{self.seed}"]))


@dataclasses.dataclass(frozen=True)
class Job:
    """A cell with all that its training takes.

    Attributes:
        cell: which.
        config: its whole experiment; every duration in it is in steps.
        steps: how many it trains for.
        examples: training images that it has.
        classes: how many.
        locality_strength, gpsa_layers: its model's, the former None without the latter.
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
    """Every cell once: seed by seed, so that a study that is stopped early compares all it has.

    Args:
        configs: of the models, by name; seeds count from a config's own.
        fractions: shares of the training examples.
        seeds: how many.
        rows: of Table 3; none: the models as they are.
        locality_strengths, gpsa_layers: axes of Fig. 8a; one alone is crossed with the model's own
            value of the other.

    Raises:
        InputError: an unknown row, or a model without GPSA layers where they are to be changed.
    """
    variants: dict[str, list[Variant]] = {}
    for model, config in configs.items():
        found = [row_variant(row, config, model) for row in rows]
        if locality_strengths or gpsa_layers:
            found += [
                grid_variant(strength, layers, config, model)
                for strength in locality_strengths or (None,)
                for layers in gpsa_layers or (None,)
            ]
        variants[model] = found or [as_it_is(config)]
    cells = (
        Cell(model, variant, fraction, configs[model].seed + number)
        for number in range(seeds)
        for fraction in fractions
        for model in configs
        for variant in variants[model]
    )
    return list(dict.fromkeys(cells))  # without GPSA layers all strengths are one cell


def make_jobs(configs: Mapping[str, Config], cells: Iterable[Cell]) -> list[Job]:
    """The runs of all cells, each found to be possible.

    Raises:
        InputError: a fraction leaves a class without examples or the run without a batch, or a
            variant does not fit its model.
    """
    cells = list(cells)
    sizes = {f: _sizes(configs, f) for f in {1.0} | {cell.fraction for cell in cells}}
    whole, classes = sizes[1.0]
    fewest = min(sizes[cell.fraction][0] for cell in cells)
    changed: dict[tuple[str, Variant], tuple[Config, Experiment]] = {}
    jobs = []
    for cell in cells:
        key = (cell.model, cell.variant)
        if key not in changed:
            config = varied(configs[cell.model], cell.variant)
            config = _in_steps_of_the_whole(config, whole)
            changed[key] = config, _possible(cell, config, fewest, classes)
        config, experiment = changed[key]
        data = dataclasses.replace(config.data, fraction=cell.fraction)
        a = experiment.architecture
        jobs.append(
            Job(
                cell=cell,
                # Durations are in steps: whatever the fraction, the run sees as many examples.
                config=dataclasses.replace(config, seed=cell.seed, data=data, keep_budget=True),
                steps=experiment.total_steps,
                examples=sizes[cell.fraction][0],
                classes=classes,
                locality_strength=a.locality_strength if a.gpsa_layers and a.conv_init else None,
                gpsa_layers=a.gpsa_layers,
            )
        )
    return jobs


def _in_steps_of_the_whole(config: Config, examples: int) -> Config:
    """The experiment with every duration in steps, epochs being those of the whole dataset.

    What the paper asks for is 1/f as many epochs of a fraction f, hence as many steps. The warm-up,
    of which it says nothing, is left as long too, so that cells differ in their images alone.
    """
    steps_per_epoch = max(1, examples // config.batch_size)

    def steps(name: str, least: int) -> str:
        return f"{max(least, duration_in_steps(config, name, steps_per_epoch))} steps"

    return dataclasses.replace(
        config,
        train_for=steps("train_for", 1),
        eval_every=steps("eval_every", 1),
        log_every=steps("log_every", 1),
        optimizer=dataclasses.replace(config.optimizer, warmup=steps("optimizer.warmup", 0)),
        checkpoint=dataclasses.replace(config.checkpoint, every=steps("checkpoint.every", 1)),
    )


def share_of(jobs: Sequence[Job], worker: int, workers: int) -> list[Job]:
    """What the `worker`-th of so many, from 1, trains: every `workers`-th job."""
    return list(jobs[worker - 1 :: workers])


def _sizes(configs: Mapping[str, Config], fraction: float) -> tuple[int, int]:
    """How many training examples and classes there are; all models of a study share their data."""
    config = next(iter(configs.values()))
    part = dataclasses.replace(config, data=dataclasses.replace(config.data, fraction=fraction))
    try:
        examples, _ = open_training_data(part)
        largest = max(config.batch_size for config in configs.values())
        if largest > len(examples):
            raise InputError(
                f"config.batch_size={largest} is more than the {len(examples)} training examples "
                "that are left"
            )
    except InputError as error:
        raise InputError(f"--fractions={fraction:g}: {error}") from error
    return len(examples), len(examples.class_names)


def _possible(cell: Cell, config: Config, examples: int, classes: int) -> Experiment:
    """The experiment of a cell, with so few examples, to find out that it can be put together."""
    try:
        return make_experiment(config, num_examples=examples, num_classes=classes)
    except InputError as error:
        raise InputError(f"cell {cell.name}: {error}") from error


def in_a_file_name(text: str) -> str:
    """A name with nothing in it that a file's cannot have."""
    return re.sub(r"[^\w.=-]", "-", text)
