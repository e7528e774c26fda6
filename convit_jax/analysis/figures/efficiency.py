"""Accuracy by amount of data (the paper's Table 2 as a figure) and by locality (its Fig. 8a)."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from convit_jax.analysis.figures import style


@style.styled
def sample_efficiency(
    curves: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray] | None = None
) -> Figure:
    """Plot top-1 accuracy by fraction of the training examples, log scale, with shaded spread.

    Args:
        curves: for each model by name, [points, 3] of fraction, mean and standard deviation, all
            in [0, 1]; NaN for an unknown standard deviation.
        reference: published values of some of the models, [points, 2] of fraction and top-1.
    """
    reference = reference or {}
    figure, axes = style.new_figure(2.6)
    for index, (name, points) in enumerate(curves.items()):
        colour, marker = style.model_style(index)
        fraction, mean, spread = 100 * np.asarray(points, float).T
        axes.plot(fraction, mean, marker=marker, color=colour, label=name)
        axes.fill_between(fraction, mean - spread, mean + spread, color=colour, alpha=0.2, lw=0)
        if name in reference:
            published = 100 * np.asarray(reference[name], float)
            axes.plot(*published.T, marker=marker, color=colour, mfc="white", ls=":",
                      label=f"{name}, paper")  # fmt: skip
    axes.set(xscale="log", xlabel="training examples (%)", ylabel="top-1 (%)")
    ticks = sorted({float(x) for line in axes.get_lines() for x in np.asarray(line.get_xdata())})
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.legend(loc="lower right")
    return figure


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
