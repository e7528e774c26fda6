"""Results of cells, their means and tables, against values computed by hand."""

import csv
import dataclasses
import io
import json

import numpy as np
import pytest

from convit_jax.analysis import figures
from convit_jax.errors import RunError
from convit_jax.studies import summaries
from convit_jax.studies.cells import list_cells, make_jobs
from convit_jax.studies.histories import curves_by_gpsa_layers, training_curves
from convit_jax.studies.progress import Pace
from convit_jax.studies.report import write_figures, write_tables
from convit_jax.studies.results import Mean, read_result, read_results, results_csv, write_result
from convit_jax.studies.tables import markdown


def rows_of(text, heading):
    """Return the fields of the first table under a heading."""
    lines = text.partition(heading)[2].partition("\n# ")[0].splitlines()
    table = [line[2:-2].split(" | ") for line in lines if line.startswith("|")]
    return [[field.strip() for field in row] for row in table if row[0] != "---"]


@pytest.fixture
def job(twins):
    configs = {"convit": twins["convit"]}
    return make_jobs(configs, list_cells(configs, [0.1], 1))[0]


def write_metrics(directory, *evaluations):
    """Write a run's metrics with (step, accuracy) of each evaluation."""
    lines = [{"step": 0, "train/loss": 1.0}]
    lines += [
        {"step": s, "eval/accuracy": a, "eval/accuracy_top5": 0.9, "eval/loss": 0.5}
        for s, a in evaluations
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))


def test_result_has_the_last_and_the_best_evaluation(job, tmp_path):
    write_metrics(tmp_path, (6, 0.75), (12, 0.5))
    assert read_result(tmp_path) is None
    result = write_result(tmp_path, job, seconds=3.21, timed_steps=8)
    assert (result.top1, result.best_top1, result.seen) == (0.5, 0.75, 12 * 16)
    assert (result.model, result.variant, result.fraction, result.seed) == ("convit", "a", 0.1, 0)
    assert (result.locality_strength, result.gpsa_layers) == (1.0, 2)
    assert read_result(tmp_path) == result
    (row,) = csv.DictReader(io.StringIO(results_csv([result])))
    assert {"model", "variant", "fraction", "seed", "examples", "steps", "top1"} <= row.keys()
    assert float(row["top1"]) == 0.5


def test_run_without_its_last_evaluation_is_not_finished(job, tmp_path):
    write_metrics(tmp_path, (6, 0.75))
    with pytest.raises(RunError, match="no evaluation of step 12"):
        write_result(tmp_path, job, seconds=1, timed_steps=1)
    assert read_result(tmp_path) is None
    (tmp_path / "result.json").write_text('{"cell"')
    with pytest.raises(RunError, match=r"result.json is damaged"):
        read_result(tmp_path)


def test_mean_and_confidence_interval_over_seeds(make_result):
    values = [0.9, 0.8, 0.85]
    results = [make_result(seed=n, top1=v) for n, v in enumerate(values)]
    results += [make_result(variant="b", top1=0.1), make_result(model="deit", top1=0.2)]
    means = summaries.efficiency(results, "top1", "convit")
    assert means.keys() == {1.0}
    assert means[1.0].mean == pytest.approx(np.mean(values))
    # Student's t with 2 degrees of freedom: 4.3027 for 95 %.
    assert means[1.0].half_width == pytest.approx(4.3027 * 0.05 / 3**0.5, rel=1e-4)
    assert Mean.from_values([0.3]) == Mean(0.3, None, 1)


@pytest.fixture
def results(make_result):
    """Results of two models, two fractions and two seeds."""
    top1 = {
        ("convit", 0.1): (0.60, 0.62), ("convit", 1.0): (0.90, 0.90),
        ("deit", 0.1): (0.40, 0.44), ("deit", 1.0): (0.88, 0.86),
    }  # fmt: skip
    return [
        make_result(model=m, fraction=f, seed=s, top1=v, variant="a" if m == "convit" else "",
                    examples=int(1000 * f))
        for (m, f), values in top1.items() for s, v in enumerate(values)
    ]  # fmt: skip


def test_table_2_has_means_intervals_and_the_relative_gap(results, twins):
    text = markdown(results, twins, {})
    header, tenth, full = rows_of(text, "# Sample efficiency")
    assert header == ["train fraction", "examples", "convit top-1", "deit top-1", "gap"]
    # 0.61 is 45 % more than 0.42. For two seeds, t is 12.7 and the standard errors 0.01 and 0.02.
    assert tenth == ["10 %", "100", "61.0 ± 12.7", "42.0 ± 25.4", "+45 %"]
    assert full == ["100 %", "1,000", "90.0 ± 0.0", "87.0 ± 12.7", "+3 %"]
    assert "seeds 0, 1" in text
    assert "192 images" in text
    assert "Ablations" not in text
    assert "Fig. 8a" not in text


def test_more_than_two_models_have_a_row_each(results, make_result, twins):
    configs = {**twins, "third": twins["convit"], "fourth": twins["convit"]}
    text = markdown([*results, make_result(model="third", top1=0.5)], configs, {})
    assert rows_of(text, "# Sample efficiency") == [
        ["top-1, trained on", "10 % (100 examples)", "100 % (1,400 examples)"],
        ["convit", "61.0 ± 12.7", "90.0 ± 0.0"],
        ["deit", "42.0 ± 25.4", "87.0 ± 12.7"],
        ["third", "", "50.0 (n=1)"],
    ]
    zoo = {"convit": "convit_small"}
    assert ["convit, paper", "59.6", "81.4"] in rows_of(markdown(results, configs, zoo), "# Sample")


def test_missing_cells_are_empty(results, twins):
    text = markdown([r for r in results if r.model == "convit"][1:], twins, {})
    # Only one of two seeds is finished.
    assert rows_of(text, "# Sample efficiency")[1] == ["10 %", "100", "62.0 (n=1)", "", ""]
    assert "No cell is finished yet" in markdown([], twins, {})


def test_published_values_are_shown_for_imagenet(make_result, twins):
    zoo = {"ours": "convit_small", "theirs": "deit_small"}
    results = [make_result(model=m, variant="", fraction=0.05, classes=1000) for m in zoo]
    configs = {"ours": twins["convit"], "theirs": twins["deit"]}
    text = markdown(results, configs, zoo)
    assert "top-5" in text
    assert rows_of(text, "# Sample efficiency")[1][-2:] == ["47.8", "34.8"]
    # The paper's gaps follow from its accuracies.
    from convit_jax.analysis.published import SAMPLE_EFFICIENCY
    from convit_jax.studies.tables import relative_gap

    ours, theirs = (SAMPLE_EFFICIENCY[name] for name in zoo.values())
    for i, published in enumerate(((37, 24, 12, 5, 2), (22, 12, 5, 2, 1))):
        gaps = [100 * relative_gap(ours[f][i], theirs[f][i]) for f in sorted(ours)]
        assert np.allclose(gaps, published, atol=0.75)


def test_ablations_as_in_table_3(make_result, twins):
    results = [make_result(variant=v, fraction=0.1, seed=s, top1=t)
               for v, s, t in (("a", 0, 0.6), ("a", 1, 0.7), ("f", 0, 0.5))]  # fmt: skip
    header, first, frozen = rows_of(
        markdown(results, {"convit": twins["convit"]}, {}), "# Ablations of convit"
    )
    assert header == ["row", "train gating", "conv init", "train GPSA", "use GPSA", "10 %"]
    assert first == ["a", "yes", "yes", "yes", "yes", "65.0 ± 63.5"]
    assert frozen == ["f", "no", "yes", "no", "yes", "50.0 (n=1)"]
    text = markdown(results, {"convit": twins["convit"]}, {"convit": "convit_small_plus"})
    assert rows_of(text, "# Ablations")[2][-1] == "54.3"


def test_grid_as_in_fig_8a_with_equal_values_without_gpsa_layers(make_result, tmp_path, twins):
    points = {(0.1, 1): 0.3, (1.0, 1): 0.4, (0.1, 2): 0.5, (1.0, 2): 0.6, (None, 0): 0.2}
    results = [
        make_result(locality_strength=s, gpsa_layers=n, top1=t,
                    variant="a" if (s, n) == (1.0, 2) else f"strength{s}_gpsa{n}")
        for (s, n), t in points.items()
    ]  # fmt: skip
    rows = rows_of(markdown(results, {"convit": twins["convit"]}, {}), "(paper Fig. 8a)")
    assert rows == [
        ["GPSA layers", "strength 0.1", "strength 1"],
        ["2", "50.0", "60.0"],
        ["1", "30.0", "40.0"],
        ["0", "20.0", "20.0"],
    ]
    names = write_figures(str(tmp_path), results, {"convit": twins["convit"]})
    assert names == ["efficiency", "locality_convit_fraction1"]


def test_rivals_beside_convit_and_deit(make_result, twins):
    fields = {"a": 0.7, "b": 0.6, "e": 0.4, "vanilla": 0.5, "impulse": 0.45}
    results = [make_result(variant=v, top1=t) for v, t in fields.items()]
    rows = rows_of(markdown(results, {"convit": twins["convit"]}, {}), "# Rivals of convit")
    assert [(row[0], row[-1]) for row in rows[1:]] == [
        ("a", "70.0"), ("vanilla", "50.0"), ("e", "40.0"), ("impulse", "45.0"),
    ]  # fmt: skip
    table_3 = rows_of(markdown(results, {"convit": twins["convit"]}, {}), "# Ablations of convit")
    assert [row[0] for row in table_3[1:]] == ["a", "b", "e"]
    assert "# Rivals" not in markdown(results[:3], {"convit": twins["convit"]}, {})
    assert summaries.grid(results, "convit", 1.0) == {}


@pytest.fixture
def trained(make_result, tmp_path):
    """A study's directory and results: two seeds of a ConViT, two of fewer layers, one rival."""
    accuracies = {
        ("a", 0): [0.2, 0.6, 0.8], ("a", 1): [0.4, 0.8, 0.8], ("gpsa1", 0): [0.1, 0.5, 0.7],
        ("gpsa0", 0): [0.0, 0.3, 0.6], ("mimetic", 0): [0.1, 0.2, 0.3],
    }  # fmt: skip
    results = []
    for (variant, seed), values in accuracies.items():
        layers = {"a": 2, "gpsa1": 1}.get(variant, 0)
        cell = f"{variant}_{seed}"
        results.append(make_result(cell=cell, variant=variant, seed=seed, gpsa_layers=layers))
        lines = [{"step": 0, "epoch": 0.0, "train/loss": 1.0}]
        pairs = zip((1.0, 2.0, 4.0), values, strict=True)
        lines += [{"epoch": epoch, "eval/accuracy": value} for epoch, value in pairs]
        (tmp_path / "cells" / cell).mkdir(parents=True)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / "cells" / cell / "metrics.jsonl").write_text(text)
    return tmp_path, results


def test_accuracy_during_training_is_the_mean_over_seeds(trained):
    curves = training_curves(str(trained[0]), trained[1], 1.0)
    assert curves.keys() == {"convit", "convit, gpsa1", "convit, gpsa0", "convit, mimetic"}
    half_width = 12.7062 * 0.1  # Student's t for two seeds
    expected = [[1, 0.3, half_width], [2, 0.7, half_width], [4, 0.8, 0]]
    np.testing.assert_allclose(curves["convit"], expected, atol=1e-5)
    assert np.isnan(curves["convit, mimetic"][:, 2]).all()
    assert training_curves(str(trained[0]), trained[1], 0.1) == {}


def test_accuracy_by_gpsa_layers_as_in_fig_8b(trained, twins):
    directory, results = trained
    layers, epochs, top1 = curves_by_gpsa_layers(str(directory), results, "convit", 1.0)
    assert (layers, epochs.tolist()) == ([0, 1, 2], [1, 2, 4])
    np.testing.assert_allclose(top1, [[0, 0.3, 0.6], [0.1, 0.5, 0.7], [0.3, 0.7, 0.8]])
    assert curves_by_gpsa_layers(str(directory), results[:2], "convit", 1.0) is None
    figure = figures.accuracy_by_gpsa_layers(top1, layers, epochs)
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].get_lines()}
    assert lines.keys() == {"1", "2", "4"}
    np.testing.assert_allclose(lines["2"], [30, 50, 70])
    names = write_figures(str(directory), results, {"convit": twins["convit"]})
    assert {"training_fraction1", "gpsa_layers_convit_fraction1"} <= set(names)


def test_no_grid_without_a_locality_strength(make_result):
    results = [make_result(locality_strength=None, gpsa_layers=n, variant=v)
               for n, v in ((2, "a"), (1, "gpsa1"), (0, "gpsa0"))]  # fmt: skip
    assert summaries.grid(results, "convit", 1.0) == {}
    strong = [make_result(), make_result(gpsa_layers=0, locality_strength=None, variant="gpsa0")]
    assert summaries.grid(strong, "convit", 1.0).keys() == {(1.0, 2), (None, 0)}


def test_tables_and_figures_are_written(results, tmp_path, twins):
    text = write_tables(str(tmp_path), results, twins)
    assert (tmp_path / "table.md").read_text() == text
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [float(row["top1"]) for row in rows] == [r.top1 for r in results]
    assert write_figures(str(tmp_path), results, twins) == ["efficiency", "relative_errors"]
    files = {path.name for path in tmp_path.iterdir()}
    names = ("efficiency", "relative_errors")
    figure_files = {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert files == {"table.md", "results.csv"} | figure_files


def test_results_are_sorted(make_result, tmp_path):
    for number, model in enumerate(("deit", "convit")):
        directory = tmp_path / str(number)
        directory.mkdir()
        record = dataclasses.asdict(make_result(model=model))
        (directory / "result.json").write_text(json.dumps(record))
    (tmp_path / "unfinished").mkdir()
    assert [r.model for r in read_results(sorted(tmp_path.iterdir()))] == ["convit", "deit"]


def test_pace_of_the_same_model_or_else_of_all(make_result, twins):
    jobs = make_jobs(twins, list_cells(twins, [1.0], 1))
    assert Pace([]).seconds_for(jobs) is None
    pace = Pace([make_result(seconds=6.0, timed_steps=12), make_result(timed_steps=0, seconds=99)])
    assert pace.seconds_for(jobs) == pytest.approx(12 * 0.5 * 2)
    pace.add("deit", 10, 1.0)
    assert pace.seconds_for(jobs, completed=2) == pytest.approx(10 * 0.5 + 12 * 0.1)
    assert Pace([], images_per_second=32).seconds_for(jobs) == pytest.approx(2 * 12 * 16 / 32)
