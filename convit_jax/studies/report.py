"""What a study leaves in its directory: `results.csv`, `table.md` and figures."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from convit_jax.analysis import tfds_name
from convit_jax.analysis.published import SAMPLE_EFFICIENCY
from convit_jax.config import Config
from convit_jax.studies import summaries
from convit_jax.studies.cells import in_a_file_name
from convit_jax.studies.results import Mean, Result, results_csv
from convit_jax.studies.tables import at, grid_axes, markdown
from convit_jax.system.whole_file import write_whole


def write_tables(directory: str, results: Sequence[Result], configs: Mapping[str, Config]) -> str:
    """Writes `results.csv` and `table.md`.

    Args:
        directory: of the study.
        results: its finished cells.
        configs: of its models, by name.

    Returns:
        What `table.md` holds.
    """
    root = pathlib.Path(directory)
    text = markdown(results, list(configs), _published_names(configs))
    write_whole(root / "results.csv", lambda file: file.write_text(results_csv(results)))
    write_whole(root / "table.md", lambda file: file.write_text(text))
    return text


def write_figures(
    directory: str, results: Sequence[Result], configs: Mapping[str, Config]
) -> list[str]:
    """Draws what the results make: accuracy against data, and Fig. 8a's heat maps.

    Returns:
        Names of the figures; each is a PNG and an SVG.
    """
    # matplotlib takes a second to import; a study that is refused does without.
    from convit_jax.analysis import figures  # noqa: PLC0415
    from convit_jax.analysis.figures.style import drawn  # noqa: PLC0415

    plots = {}
    curves = {model: _curve(summaries.efficiency(results, "top1", model)) for model in configs}
    curves = {model: points for model, points in curves.items() if len(points)}
    if curves:
        reference = {
            model: np.array([(f, top1 / 100) for f, (top1, _) in SAMPLE_EFFICIENCY[name].items()])
            for model, name in _published_names(configs).items()
            if name in SAMPLE_EFFICIENCY
        }
        plots["efficiency"] = figures.sample_efficiency(curves, reference)
    for model in configs:
        for fraction in summaries.fractions(results):
            cells = summaries.grid(results, model, fraction)
            if cells:
                strengths, layers = grid_axes(cells)
                title = f"{model}, {100 * fraction:g} % of the examples"
                name = f"locality_{in_a_file_name(model)}_fraction{fraction:g}"
                shares = _field(cells, strengths, layers)
                plots[name] = figures.locality_grid(shares, strengths, layers, title)
    for name, figure in plots.items():
        for kind in ("png", "svg"):
            path, image = pathlib.Path(directory) / f"{name}.{kind}", drawn(figure, kind)
            write_whole(path, lambda file, image=image: file.write_bytes(image))
    return list(plots)


def _published_names(configs: Mapping[str, Config]) -> dict[str, str]:
    """The zoo's names of models that are trained on ImageNet; none on other data."""
    return {
        model: config.model.name
        for model, config in configs.items()
        if tfds_name(config.data.train) == tfds_name(config.data.eval) == "imagenet2012"
        and not config.data.classes
    }


def _curve(means: Mapping[float, Mean]) -> np.ndarray:
    """[points, 3]: fraction, mean, spread."""
    rows = [
        (fraction, m.mean, np.nan if m.spread is None else m.spread)
        for fraction, m in sorted(means.items())
    ]
    return np.array(rows, float).reshape(-1, 3)


def _field(
    cells: Mapping[tuple[float | None, int], Mean],
    strengths: Sequence[float],
    layers: Sequence[int],
) -> np.ndarray:
    found = [[at(cells, strength, count) for strength in strengths] for count in layers]
    return np.array([[np.nan if m is None else m.mean for m in row] for row in found])
