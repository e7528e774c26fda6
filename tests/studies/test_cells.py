"""The cells of a study and their configs."""

import dataclasses
import itertools

import pytest

from convit_jax.config import duration_in_steps, get
from convit_jax.config.typed import differences
from convit_jax.errors import InputError
from convit_jax.studies.cells import jobs_of_worker, list_cells, make_jobs
from convit_jax.training import make_experiment, open_training_data


def test_each_combination_is_one_cell_with_a_unique_name(twins):
    cells = list_cells(twins, [0.05, 1.0], 3)
    combinations = {(c.model, c.fraction, c.seed) for c in cells}
    assert combinations == set(itertools.product(["convit", "deit"], [0.05, 1.0], range(3)))
    assert len({c.name for c in cells}) == len(cells) == 12
    assert cells[0].name == "convit_fraction0.05_seed0"
    # Seed by seed, so that the cells of a study that is stopped early can be compared.
    assert [c.seed for c in cells] == [0] * 4 + [1] * 4 + [2] * 4


def test_seeds_start_at_the_config_s_seed(twins):
    configs = {name: dataclasses.replace(config, seed=5) for name, config in twins.items()}
    assert {c.seed for c in list_cells(configs, [1.0], 2)} == {5, 6}


def test_rows_and_points_with_the_same_model_are_one_cell(twins):
    convit = {"convit": twins["convit"]}
    cells = list_cells(convit, [0.1], 1, ["a", "e"], [0.1, 1.0], [0, 1, 2])
    assert {c.name.removesuffix("_fraction0.1_seed0") for c in cells} == {
        "convit",  # row a, and the point with strength 1 and 2 layers
        "convit_row-e",
        "convit_gpsa0",  # for all strengths
        "convit_strength0.1_gpsa1",
        "convit_gpsa1",
        "convit_strength0.1",
    }
    assert len(cells) == 6


def test_model_names_become_valid_directory_names(twins):
    (cell,) = list_cells({"ablation=b/x": twins["convit"]}, [1.0], 1)
    assert cell.name == "ablation=b-x_fraction1_seed0"


@pytest.mark.parametrize("duration", ["24 steps", "2 epochs"])
def test_cells_of_all_fractions_see_the_same_number_of_images(twins, duration):
    """Checked with the experiments that the training loop makes from the configs."""
    configs = {name: dataclasses.replace(c, train_for=duration) for name, c in twins.items()}
    jobs = make_jobs(configs, list_cells(configs, [0.02, 0.1, 1.0], 1))
    seen, sizes = set(), {}
    for job in jobs:
        examples, _ = open_training_data(job.config)
        experiment = make_experiment(job.config, num_examples=len(examples), num_classes=10)
        seen.add(experiment.total_steps * job.config.batch_size)
        assert (job.steps, job.examples) == (experiment.total_steps, len(examples))
        sizes[job.cell.fraction] = len(examples)
    expected = 24 if duration == "24 steps" else 2 * (1400 // 16)
    assert seen == {expected * 16}
    assert sizes[1.0] == 1400
    assert 0.08 * 1400 < sizes[0.1] < 0.1 * 1400


def test_cells_of_a_model_differ_only_in_their_images(twins):
    """Warm-up and evaluation interval are those of the full dataset too."""
    config = dataclasses.replace(
        twins["convit"],
        eval_every="0.5 epochs",
        optimizer=dataclasses.replace(twins["convit"].optimizer, warmup="1 epochs"),
    )
    small, full = make_jobs({"m": config}, list_cells({"m": config}, [0.1, 1.0], 1))
    changed = {name for name, *_ in differences(small.config, full.config)}
    assert changed == {"data.fraction"}
    for name, steps in (("eval_every", round(87 / 2)), ("optimizer.warmup", 87)):
        assert duration_in_steps(small.config, name, 1e9) == steps, get(small.config, name)


def test_impossible_cells_are_rejected_before_training(twins):
    cells = list_cells(twins, [1.0, 0.001], 1)
    with pytest.raises(InputError, match=r"--fractions=0.001: .*leaves none of the \d+ examples"):
        make_jobs(twins, cells)
    large = {name: dataclasses.replace(c, batch_size=1500) for name, c in twins.items()}
    with pytest.raises(InputError, match=r"--fractions=1: config.batch_size=1500 is more than"):
        make_jobs(large, list_cells(large, [0.5], 1))
    broken = dataclasses.replace(
        twins["deit"], optimizer=dataclasses.replace(twins["deit"].optimizer, frozen=("nothing",))
    )
    configs = twins | {"deit": broken}
    with pytest.raises(InputError, match=r"cell deit_fraction1_seed0: .*'nothing' matches none"):
        make_jobs(configs, list_cells(configs, [1.0], 1))


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_workers_partition_the_jobs(workers, twins):
    jobs = make_jobs(twins, list_cells(twins, [0.1, 1.0], 1))
    parts = [jobs_of_worker(jobs, worker, workers) for worker in range(1, workers + 1)]
    names = [job.cell.name for part in parts for job in part]
    assert sorted(names) == sorted(job.cell.name for job in jobs)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
