"""The figures of a study show its results."""

import numpy as np

from convit_jax.analysis import figures
from convit_jax.analysis.figures import style

CURVES = {
    "ConViT": np.array([[0.05, 0.6, 0.02], [0.1, 0.7, 0.01], [1.0, 0.9, np.nan]]),
    "DeiT": np.array([[0.05, 0.4, 0.03], [1.0, 0.85, 0.0]]),
}


def test_line_for_each_model_with_shaded_interval_and_published_values():
    paper = {"DeiT": np.array([[0.05, 0.348], [1.0, 0.799]])}
    (axes,) = figures.sample_efficiency(CURVES, paper).axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert lines.keys() == {"ConViT", "DeiT", "DeiT, paper"}
    assert np.allclose(lines["ConViT"].get_xydata(), 100 * CURVES["ConViT"][:, :2])
    assert np.allclose(lines["DeiT, paper"].get_xydata(), [[5, 34.8], [100, 79.9]])
    assert lines["DeiT, paper"].get_color() == lines["DeiT"].get_color()
    assert axes.get_xscale() == "log"
    shades = [patch.get_paths() for patch in axes.collections]
    assert len(shades) == 2
    heights = shades[0][0].vertices[:, 1]
    assert {58.0, 62.0, 69.0, 71.0} <= set(np.round(heights, 6))
    ticks = [label.get_text() for label in axes.get_xticklabels()]
    assert ticks == ["5", "10", "100"]


def test_errors_relative_to_a_baseline_with_their_intervals():
    curves = {
        "ConViT": np.array([[0.05, 0.6, 0.1], [1.0, 0.8, np.nan]]),
        "DeiT": np.array([[0.05, 1.0, 0.0], [1.0, 1.0, 0.0]]),
        "other": np.array([[0.05, 1.2, 0.3]]),
    }
    figure = figures.relative_errors(curves, "DeiT")
    (axes,) = figure.axes
    assert axes.get_ylabel() == "error relative to DeiT"
    (dashed,) = (line for line in axes.get_lines() if line.get_label() == "DeiT")
    assert set(dashed.get_ydata()) == {1}
    points, _, (bars,) = axes.containers[0].lines
    np.testing.assert_allclose(points.get_ydata(), [0.6, 0.8])
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    np.testing.assert_allclose(ends, [[0.5, 0.7], [0.8, 0.8]])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["5", "100"]
    # Points of different models at a fraction are side by side.
    others, *_ = axes.containers[1].lines
    assert points.get_xdata()[0] < 5 < others.get_xdata()[0] < 6


def test_six_models_and_more_look_different():
    looks = [tuple(style.model_style(index).values()) for index in range(14)]
    assert len(set(looks)) == 14


def test_grid_cell_for_each_point_with_its_value():
    values = np.array([[0.2, 0.2], [0.5, np.nan]])
    figure = figures.locality_grid(values, [0.1, 1.0], [0, 3], "ConViT")
    axes = figure.axes[0]
    (image,) = axes.get_images()
    assert np.allclose(np.ma.filled(image.get_array(), np.nan), 100 * values, equal_nan=True)
    assert image.origin == "lower"
    assert [text.get_text() for text in axes.texts] == ["20.0", "20.0", "50.0"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.1", "1"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "3"]
    assert axes.get_title() == "ConViT"
