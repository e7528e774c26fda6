"""Differences between models, paired by seed, against values computed by hand."""

import dataclasses

import pytest

from convit_jax.studies import comparison
from convit_jax.studies.results import Mean
from convit_jax.studies.tables import markdown


def results_of(make_result, model, *top1, **fields):
    """Results of one model: its top-1 for seeds 0, 1, …"""
    fields = {"variant": "a" if model == "convit" else ""} | fields
    return [make_result(model=model, seed=n, top1=t, **fields) for n, t in enumerate(top1)]


def test_differences_are_paired_by_seed(make_result):
    ours = results_of(make_result, "convit", 0.9, 0.8, 0.7)
    theirs = results_of(make_result, "deit", 0.8, 0.7, 0.6, 0.1)
    # The means vary by 0.1 between seeds, their difference does not; seed 3 has no pair.
    (difference,) = comparison.differences(ours, reversed(theirs)).values()
    assert difference.mean == pytest.approx(0.1)
    assert difference.half_width == pytest.approx(0, abs=1e-12)
    assert difference.count == 3
    assert comparison.differences(ours, results_of(make_result, "deit", 0.5, fraction=0.1)) == {}


def test_errors_are_relative_to_the_others_mean_error(make_result):
    ours = results_of(make_result, "convit", 0.9, 0.8)
    theirs = results_of(make_result, "deit", 0.8, 0.6)
    (ratio,) = comparison.relative_errors(ours, theirs).values()
    assert ratio.mean == pytest.approx(0.15 / 0.3)
    # Differences of 0.1 and 0.2: a standard error of 0.05, over the mean error of 0.3.
    assert ratio.half_width == pytest.approx(12.7062 * 0.05 / 0.3, rel=1e-4)
    assert comparison.relative_errors(ours, results_of(make_result, "deit", 1.0, 1.0)) == {}


@pytest.mark.parametrize(
    ("values", "beyond"), [([0.1, 0.11, 0.12], True), ([0.1, 0.0, 0.02], False), ([0.1], False)]
)
def test_a_difference_is_beyond_noise_if_its_interval_has_no_0(values, beyond):
    assert Mean.from_values(values).beyond_noise is beyond
    assert Mean.from_values([-v for v in values]).beyond_noise is beyond


def test_groups_are_models_and_rows_in_order_without_points_of_fig_8a(make_result, twins):
    results = results_of(make_result, "deit", 0.5)
    for variant in ("mimetic", "gpsa1", "a", "e", "b"):
        results += results_of(make_result, "convit", 0.5, variant=variant)
    groups = comparison.group_by_model(results, list(twins))
    names = ["convit", "convit, b", "convit, e", "convit, mimetic", "deit"]
    assert list(groups) == names
    assert comparison.plain_transformer(groups, twins) == "convit, e"


def test_a_rival_s_initialisation_is_no_plain_transformer(make_result, twins):
    mimetic = dataclasses.replace(
        twins["deit"], model=dataclasses.replace(twins["deit"].model, init="mimetic")
    )
    configs = {"convit": twins["convit"], "mimetic": mimetic}
    results = [r for name in configs for r in results_of(make_result, name, 0.5)]
    groups = comparison.group_by_model(results, list(configs))
    assert comparison.plain_transformer(groups, configs) is None
    configs["deit"] = twins["deit"]
    groups = comparison.group_by_model(
        [*results, *results_of(make_result, "deit", 0.4)], [*configs]
    )
    assert comparison.plain_transformer(groups, configs) == "deit"


def table_under(text, heading):
    lines = text.partition(f"# {heading}\n")[2].partition("\n# ")[0].splitlines()
    return [line for line in lines if line.startswith("|")][2:]


def test_tables_of_differences_mark_what_is_beyond_noise(make_result, twins):
    configs = {**twins, "third": twins["convit"]}
    results = [
        *results_of(make_result, "convit", 0.90, 0.91, 0.92),
        *results_of(make_result, "deit", 0.80, 0.82, 0.81),
        *results_of(make_result, "third", 0.85, 0.95, 0.90, variant="a"),
        *results_of(make_result, "convit", 0.6, fraction=0.1),
    ]
    text = markdown(results, configs, {})
    assert table_under(text, "convit minus each other model") == [
        "| deit | **+10.0 ± 2.5** |",
        "| third | +1.0 ± 11.4 |",
    ]
    assert table_under(text, "Each other model minus deit") == [
        "| convit | **+10.0 ± 2.5** |",
        "| third | +9.0 ± 9.9 |",
    ]
    alone = [r for r in results if r.seed == 0]
    assert "minus" not in markdown(alone, configs, {})
    pair = markdown([r for r in results if r.model != "third"], twins, {})
    assert pair.count("minus") == 1  # the other table would be the same with another sign
