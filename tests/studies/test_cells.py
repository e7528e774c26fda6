"""Which cells a study has, and what each of them trains."""

import dataclasses
import itertools

import pytest

from convit_jax.config import duration_in_steps, get
from convit_jax.config.typed import differences
from convit_jax.errors import InputError
from convit_jax.studies.cells import jobs_of_worker, list_cells, make_jobs
from convit_jax.training import make_experiment, open_training_data


def test_every_combination_is_a_cell_once_with_a_name_of_its_own(twins):
    cells = list_cells(twins, [0.05, 1.0], 3)
    found = {(c.model, c.fraction, c.seed) for c in cells}
    assert found == set(itertools.product(["convit", "deit"], [0.05, 1.0], range(3)))
    assert len({c.name for c in cells}) == len(cells) == 12
    assert cells[0].name == "convit_fraction0.05_seed0"
    # Seed by seed: what is done when a study is stopped early can be compared.
    assert [c.seed for c in cells] == [0] * 4 + [1] * 4 + [2] * 4


def test_seeds_count_from_the_config_s(twins):
    later = {name: dataclasses.replace(config, seed=5) for name, config in twins.items()}
    assert {c.seed for c in list_cells(later, [1.0], 2)} == {5, 6}


def test_rows_and_points_are_cells_and_each_model_is_one(twins):
    convit = {"convit": twins["convit"]}
    cells = list_cells(convit, [0.1], 1, ["a", "e"], [0.1, 1.0], [0, 1, 2])
    assert {c.name.removesuffix("_fraction0.1_seed0") for c in cells} == {
        "convit",  # row a, and the point of strength 1 and 2 layers
        "convit_row-e",
        "convit_gpsa0",  # where no layer is GPSA, strengths make no difference
        "convit_strength0.1_gpsa1",
        "convit_gpsa1",
        "convit_strength0.1",
    }
    assert len(cells) == 6


def test_strange_names_of_models_are_names_of_directories(twins):
    (cell,) = list_cells({"ablation=b/x": twins["convit"]}, [1.0], 1)
    assert cell.name == "ablation=b-x_fraction1_seed0"


@pytest.mark.parametrize("duration", ["24 steps", "2 epochs"])
def test_all_cells_see_as_many_images_whatever_their_fraction(twins, duration):
    """By the experiments that the training loop itself makes of the configs."""
    configs = {name: dataclasses.replace(c, train_for=duration) for name, c in twins.items()}
    jobs = make_jobs(configs, list_cells(configs, [0.02, 0.1, 1.0], 1))
    seen, sizes = set(), {}
    for job in jobs:
        examples, _ = open_training_data(job.config)
        made = make_experiment(job.config, num_examples=len(examples), num_classes=10)
        seen.add(made.total_steps * job.config.batch_size)
        assert (job.steps, job.examples) == (made.total_steps, len(examples))
        sizes[job.cell.fraction] = len(examples)
    expected = 24 if duration == "24 steps" else 2 * (1400 // 16)
    assert seen == {expected * 16}
    assert sizes[1.0] == 1400
    assert 0.08 * 1400 < sizes[0.1] < 0.1 * 1400


def test_cells_of_a_model_differ_in_their_images_alone(twins):
    """The learning rate's warm-up and the evaluations too are those of all the data."""
    config = dataclasses.replace(
        twins["convit"],
        eval_every="0.5 epochs",
        optimizer=dataclasses.replace(twins["convit"].optimizer, warmup="1 epochs"),
    )
    small, whole = make_jobs({"m": config}, list_cells({"m": config}, [0.1, 1.0], 1))
    changed = {name for name, *_ in differences(small.config, whole.config)}
    assert changed == {"data.fraction"}
    for name, steps in (("eval_every", round(87 / 2)), ("optimizer.warmup", 87)):
        assert duration_in_steps(small.config, name, 1e9) == steps, get(small.config, name)


def test_nothing_is_overlooked_before_the_first_cell(twins):
    cells = list_cells(twins, [1.0, 0.001], 1)
    with pytest.raises(InputError, match=r"--fractions=0.001: .*leaves none of the \d+ examples"):
        make_jobs(twins, cells)
    with pytest.raises(InputError, match=r"--fractions=0.01: config.batch_size=16 is more than"):
        make_jobs(twins, list_cells(twins, [1.0, 0.01], 1))
    broken = dataclasses.replace(
        twins["deit"], optimizer=dataclasses.replace(twins["deit"].optimizer, frozen=("nothing",))
    )
    configs = twins | {"deit": broken}
    with pytest.raises(InputError, match=r"cell deit_fraction1_seed0: .*'nothing' matches none"):
        make_jobs(configs, list_cells(configs, [1.0], 1))


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_shares_are_disjoint_and_together_everything(workers, twins):
    jobs = make_jobs(twins, list_cells(twins, [0.1, 1.0], 1))
    shares = [jobs_of_worker(jobs, worker, workers) for worker in range(1, workers + 1)]
    names = [job.cell.name for share in shares for job in share]
    assert sorted(names) == sorted(job.cell.name for job in jobs)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
