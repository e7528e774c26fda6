"""Figures show the given values."""

import matplotlib as mpl
import numpy as np
import pytest

from convit_jax.analysis import History, figures
from convit_jax.analysis.figures import AttentionRow
from convit_jax.analysis.figures.style import render_figure


def make_history(evaluations=3, layers=4, num_gated=2, heads=9, seed=0):
    rng = np.random.default_rng(seed)
    return History(
        np.arange(evaluations) * 1.0,
        rng.uniform(1, 5, (evaluations, layers)),
        rng.uniform(size=(evaluations, num_gated, heads)),
    )


def panels(figure):
    return [axes for axes in figure.axes if axes.axison and axes.get_label() != "<colorbar>"]


def colour_bars(figure):
    return [axes for axes in figure.axes if axes.get_label() == "<colorbar>"]


def test_models_side_by_side_share_a_scale():
    histories = {"ConViT": make_history(), "DeiT": make_history(num_gated=0, seed=1)}
    figure = figures.nonlocality_over_training(histories)
    axes_list = panels(figure)
    assert [axes.get_title() for axes in axes_list] == ["ConViT", "DeiT"]
    assert axes_list[0].get_ylim() == axes_list[1].get_ylim()
    for axes, history in zip(axes_list, histories.values(), strict=True):
        curves = np.array([line.get_ydata() for line in axes.get_lines()])
        assert np.array_equal(curves, history.nonlocality.T)
    assert [axes.get_ylabel() for axes in colour_bars(figure)] == ["layer"]


def test_panel_for_each_layer_with_the_mean_in_black():
    history = make_history(num_gated=7, layers=8)
    axes_list = panels(figures.gates_over_training(history, "ConViT"))
    assert [axes.get_title() for axes in axes_list] == [f"layer {n}" for n in range(1, 8)]
    for layer, axes in enumerate(axes_list):
        *heads, mean = axes.get_lines()
        assert np.array_equal([line.get_ydata() for line in heads], history.gates[:, layer].T)
        assert np.allclose(mean.get_ydata(), history.gates[:, layer].mean(axis=-1))
        assert mean.get_color() == "black"
        assert not any(np.array_equal(line.get_color(), "black") for line in heads)


def test_single_evaluation_is_a_dot():
    (axes,) = panels(figures.nonlocality_over_training({"one": make_history(evaluations=1)}))
    assert {line.get_marker() for line in axes.get_lines()} == {"o"}


def test_figures_by_layer_show_all_heads():
    values = {"a": make_history().gates[0], "b": np.ones((5, 4))}
    (axes,) = panels(figures.nonlocality_by_layer(values))
    assert [line.get_label() for line in axes.get_lines()] == ["a", "b"]
    assert sum(len(dots.get_offsets()) for dots in axes.collections) == 2 * 9 + 5 * 4
    (axes,) = panels(figures.gates_by_layer(values["a"]))
    assert sum(len(dots.get_offsets()) for dots in axes.collections) == 2 * 9


@pytest.mark.parametrize("heads", [3, 9, 16])
def test_attention_of_models_with_different_grids_and_heads(heads):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (48, 32, 3), np.uint8)
    gated = AttentionRow(
        "ConViT layer 2", rng.uniform(size=(heads, 6, 4)), np.full(heads, 0.25), (5, 3)
    )
    plain = AttentionRow("DeiT layer 2", rng.uniform(size=(2, 3, 2)), None, (1, 1))
    figure = figures.attention_maps(image, [gated, plain])
    axes_list = panels(figure)
    assert len(axes_list) == heads + 1 + 2 + 1
    assert axes_list[1].get_title() == "σ = 0.25"
    assert axes_list[heads + 2].get_title() == "head 1"
    assert np.array_equal(axes_list[1].get_images()[0].get_array(), gated.attention[0])
    # The query patch is framed, in pixels of the image and in patches of the map.
    frames = [axes.patches[0].get_bbox().bounds for axes in (axes_list[0], axes_list[1])]
    assert frames == [(23.5, 39.5, 8, 8), (2.5, 4.5, 1, 1)]
    assert figure.get_figwidth() < 14


def test_positional_maps_are_titled_with_the_centres():
    maps = np.random.default_rng(0).uniform(size=(4, 3, 3))
    centres = np.array([[-0.5, -0.5], [-0.5, 0.5], [0.5, -0.5], [0.5, 0.5]])
    figure = figures.positional_maps([("initialisation", maps), ("layer 1", maps)], (1, 1), centres)
    axes_list = panels(figure)
    assert len(axes_list) == 8
    assert axes_list[1].get_title() == "head 2\n(-0.5, 0.5)"
    assert axes_list[4].get_ylabel() == "layer 1"


def test_mask_curves_start_at_the_unmasked_model():
    top1 = {("none", 0): 0.9, ("pos_embed", 0): 0.7, ("content", 1): 0.8, ("content", 3): 0.2,
            ("position", 1): 0.5, ("position", 3): 0.4}  # fmt: skip
    (axes,) = panels(figures.accuracy_under_masks(top1, 0.1))
    content, position = axes.get_lines()[:2]
    assert np.allclose(content.get_xydata(), [[0, 90], [1, 80], [3, 20]])
    assert np.allclose(position.get_xydata(), [[0, 90], [1, 50], [3, 40]])


def test_equal_figures_give_equal_files():
    first, second = (figures.gates_by_layer(make_history().gates[0], "ConViT") for _ in range(2))
    for kind in ("svg", "png"):
        assert render_figure(first, kind) == render_figure(second, kind)


def test_global_settings_are_neither_used_nor_changed():
    before = dict(mpl.rcParams)
    with mpl.rc_context({"lines.linewidth": 9, "font.size": 30}):
        figure = figures.nonlocality_over_training({"one": make_history()})
    assert {line.get_linewidth() for line in panels(figure)[0].get_lines()} == {1.2}
    assert dict(mpl.rcParams) == before
