"""Output files of a study: `results.csv`, `table.md` and figures."""

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from convit_jax.analysis import tfds_name
from convit_jax.analysis.published import SAMPLE_EFFICIENCY
from convit_jax.config import Config
from convit_jax.studies import comparison, histories, summaries
from convit_jax.studies.cells import as_file_name
from convit_jax.studies.results import Mean, Result, results_csv
from convit_jax.studies.tables import grid_axes, grid_cell, markdown
from convit_jax.system.whole_file import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_tables(directory: str, results: Sequence[Result], configs: Mapping[str, Config]) -> str:
    """Write `results.csv` and `table.md`.

    Args:
        directory: directory of the study.
        results: results of its finished cells.
        configs: config of each of its models by name.

    Returns:
        The content of `table.md`.
    """
    root = pathlib.Path(directory)
    text = markdown(results, configs, _published_names(configs))
    write_whole(root / "results.csv", results_csv(results))
    write_whole(root / "table.md", text)
    return text


def write_figures(
    directory: str, results: Sequence[Result], configs: Mapping[str, Config]
) -> list[str]:
    """Write the figures of the results: by amount of data, during training, Fig. 8a, 8b.

    Returns:
        Names of the figures; each is written as PNG and SVG.
    """
    # matplotlib takes a second to import: not needed for error messages.
    from convit_jax.analysis import figures  # noqa: PLC0415
    from convit_jax.analysis.figures.style import render_figure  # noqa: PLC0415

    plots = _plots_by_amount_of_data(results, configs)
    for model in configs:
        for fraction in summaries.fractions(results):
            cells = summaries.grid(results, model, fraction)
            if cells:
                strengths, layers = grid_axes(cells)
                title = f"{model}, {100 * fraction:g} % of the examples"
                name = f"locality_{as_file_name(model)}_fraction{fraction:g}"
                values = [[grid_cell(cells, s, n) for s in strengths] for n in layers]
                top1 = np.array([[np.nan if m is None else m.mean for m in row] for row in values])
                plots[name] = figures.locality_grid(top1, strengths, layers, title)
    plots |= _plots_of_training(directory, results, configs)
    for name, figure in plots.items():
        for kind in ("png", "svg"):
            content = render_figure(figure, kind)
            path = pathlib.Path(directory, f"{name}.{kind}")
            write_whole(path, content)
    return list(plots)


def _plots_by_amount_of_data(
    results: Sequence[Result], configs: Mapping[str, Config]
) -> dict[str, "Figure"]:
    """Return the figures of accuracy, and of errors relative to a DeiT's, by name."""
    from convit_jax.analysis import figures  # noqa: PLC0415

    groups = comparison.group_by_model(results, list(configs))
    plots = {}
    if groups:
        reference = {
            model: np.array([(f, top1 / 100) for f, (top1, _) in SAMPLE_EFFICIENCY[name].items()])
            for model, name in _published_names(configs).items()
            if name in SAMPLE_EFFICIENCY
        }
        means = {name: summaries.by_fraction(group, "top1") for name, group in groups.items()}
        curves = {name: _curve_points(m) for name, m in means.items()}
        plots["efficiency"] = figures.sample_efficiency(curves, reference)
    deit = comparison.plain_transformer(groups, configs)
    if deit is not None and len(groups) > 1:
        errors = {
            name: _curve_points(comparison.relative_errors(group, groups[deit]))
            for name, group in groups.items()
        }
        plots["relative_errors"] = figures.relative_errors(errors, deit)
    return plots


def _plots_of_training(
    directory: str, results: Sequence[Result], models: Iterable[str]
) -> dict[str, "Figure"]:
    """Return the figures of accuracy during training, by name: for each fraction, and Fig. 8b."""
    from convit_jax.analysis import figures  # noqa: PLC0415

    plots = {}
    for fraction in summaries.fractions(results):
        of_examples = f"{100 * fraction:g} % of the examples"
        curves = histories.training_curves(directory, results, fraction)
        if curves:
            title = f"during training, {of_examples}"
            plots[f"training_fraction{fraction:g}"] = figures.accuracy_over_training(curves, title)
        for model in models:
            by_layers = histories.curves_by_gpsa_layers(directory, results, model, fraction)
            if by_layers:
                layers, epochs, top1 = by_layers
                name = f"gpsa_layers_{as_file_name(model)}_fraction{fraction:g}"
                title = f"{model}, {of_examples}"
                plots[name] = figures.accuracy_by_gpsa_layers(top1, layers, epochs, title)
    return plots


def _published_names(configs: Mapping[str, Config]) -> dict[str, str]:
    """Return the zoo's names of the models trained on ImageNet, the data of published results."""
    return {
        model: config.model.name
        for model, config in configs.items()
        if tfds_name(config.data.train) == tfds_name(config.data.eval) == "imagenet2012"
        and not config.data.classes
    }


def _curve_points(means: Mapping[float, Mean]) -> np.ndarray:
    """Return [points, 3]: fraction, mean and half its confidence interval (NaN if unknown)."""
    rows = [
        (fraction, m.mean, np.nan if m.half_width is None else m.half_width)
        for fraction, m in sorted(means.items())
    ]
    return np.array(rows, float).reshape(-1, 3)
