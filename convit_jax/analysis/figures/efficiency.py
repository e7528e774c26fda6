"""Accuracy and errors by amount of data (the paper's Table 2), and by locality (its Fig. 8a)."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from convit_jax.analysis.figures import style

# Largest shift of a model's points in `relative_errors`, as a natural logarithm.
_SIDE_BY_SIDE = 0.12


@style.styled
def sample_efficiency(
    curves: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray] | None = None
) -> Figure:
    """Plot top-1 accuracy by fraction of the training examples, log scale, intervals shaded.

    Args:
        curves: for each model by name, [points, 3] of fraction, mean and half the width of its
            confidence interval, all in [0, 1]; NaN for an unknown interval.
        reference: published values of some of the models, [points, 2] of fraction and top-1.
    """
    reference = reference or {}
    figure, axes = style.new_figure(2.6)
    for index, (name, points) in enumerate(curves.items()):
        look = style.model_style(index)
        fraction, mean, half = 100 * np.asarray(points, float).T
        axes.plot(fraction, mean, label=name, **look)
        axes.fill_between(fraction, mean - half, mean + half, color=look["color"], alpha=0.2, lw=0)
        if name in reference:
            published = 100 * np.asarray(reference[name], float)
            axes.plot(*published.T, label=f"{name}, paper",
                      **look | {"markerfacecolor": "white", "linestyle": ":"})  # fmt: skip
    axes.set_ylabel("top-1 (%)")
    shown = [*curves.values(), *reference.values()]
    _set_fractions(axes, {float(fraction) for points in shown for fraction in points[:, 0]})
    axes.legend(loc="lower right")
    return figure


@style.styled
def relative_errors(curves: Mapping[str, np.ndarray], baseline: str) -> Figure:
    """Plot errors over those of a baseline by fraction of the training examples, with intervals.

    Args:
        curves: for each model by name, [points, 3] of fraction, error relative to the baseline's,
            and half the width of its confidence interval; NaN for an unknown interval. The
            baseline is one of them.
        baseline: name of the model whose errors are 1, a dashed line.
    """
    figure, axes = style.new_figure(2.6 + 0.07 * len(curves))
    # Side by side at each fraction, so that intervals do not cover each other.
    shifts = np.linspace(-1, 1, len(curves)) * _SIDE_BY_SIDE
    for index, (name, points) in enumerate(curves.items()):
        look = style.model_style(index)
        if name == baseline:
            axes.axhline(1, color=look["color"], ls="--", label=name)
            continue
        fraction, ratio, half = np.asarray(points, float).T
        x = 100 * fraction * np.exp(shifts[index])
        axes.errorbar(x, ratio, np.nan_to_num(half), label=name, capsize=2, **look)
    # Intervals of few seeds may be wider than the figure.
    highest = max(points[:, 1].max(initial=1.0) for points in curves.values())
    axes.set(ylabel=f"error relative to {baseline}", ylim=(0, 1.25 * highest))
    _set_fractions(axes, {float(f) for points in curves.values() for f in points[:, 0]})
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _set_fractions(axes: Axes, fractions: set[float]) -> None:
    """Let the x axis show fractions, in percent, on a log scale."""
    axes.set(xscale="log", xlabel="training examples (%)")
    axes.xaxis.set_major_locator(FixedLocator(sorted(100 * fraction for fraction in fractions)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


@style.styled
def locality_grid(
    top1: np.ndarray, strengths: Sequence[float], layers: Sequence[int], title: str = ""
) -> Figure:
    """Plot top-1 accuracy by locality strength and number of GPSA layers (paper Fig. 8a).

    Args:
        top1: accuracies in [0, 1], [layers, strengths]; NaN for missing cells.
        strengths: α of each column.
        layers: number of GPSA layers of each row, from the bottom.
        title: title of the figure.
    """
    figure, axes = style.new_figure(2.6)
    percent = 100 * np.asarray(top1, float)
    image = axes.imshow(percent, cmap="viridis", origin="lower", aspect="auto")
    middle = (np.nanmin(percent) + np.nanmax(percent)) / 2
    for (row, column), value in np.ndenumerate(percent):
        if np.isfinite(value):
            colour = "white" if value < middle else "black"
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=colour)
    axes.set(title=title, xlabel="locality strength α", ylabel="GPSA layers")
    axes.set_xticks(range(len(strengths)), [f"{value:g}" for value in strengths])
    axes.set_yticks(range(len(layers)), [str(count) for count in layers])
    axes.grid(visible=False)
    figure.colorbar(image, label="top-1 (%)")
    return figure
