"""Accuracy against data and against locality: the paper's Table 2 as a figure, and its Fig. 8a."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from convit_jax.analysis.figures import style

_PAPER = "paper"


@style.styled
def sample_efficiency(
    curves: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray] | None = None
) -> Figure:
    """Top-1 against the share of the training examples, log scale; the spread is shaded.

    Args:
        curves: by the models' names: [points, 3] of fraction, mean and standard deviation, all
            shares in [0, 1]; NaN where a spread is not known.
        reference: published values of some of the models: [points, 2] of fraction and top-1.
    """
    reference = reference or {}
    figure = Figure(figsize=(style.COLUMN, 2.6))
    axes = figure.subplots()
    for number, (name, points) in enumerate(curves.items()):
        colour = style.MODELS[number % len(style.MODELS)]
        marker = style.MARKERS[number % len(style.MARKERS)]
        fraction, mean, spread = 100 * np.asarray(points, float).T
        axes.plot(fraction, mean, marker=marker, color=colour, label=name)
        axes.fill_between(fraction, mean - spread, mean + spread, color=colour, alpha=0.2, lw=0)
        if name in reference:
            published = 100 * np.asarray(reference[name], float)
            axes.plot(*published.T, marker=marker, color=colour, mfc="white", ls=":",
                      label=f"{name}, {_PAPER}")  # fmt: skip
    axes.set(xscale="log", xlabel="training examples (%)", ylabel="top-1 (%)")
    ticks = sorted({x for line in axes.get_lines() for x in line.get_xdata()})
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.legend(loc="lower right")
    return figure


@style.styled
def locality_grid(
    top1: np.ndarray, strengths: Sequence[float], layers: Sequence[int], title: str = ""
) -> Figure:
    """Top-1 by locality strength and number of GPSA layers (paper Fig. 8a), written in each field.

    Args:
        top1: shares, [layers, strengths]; NaN where there is none.
        strengths: α of each column.
        layers: how many of each row; drawn from the bottom.
        title: what was trained, and on what.
    """
    figure = Figure(figsize=(style.COLUMN, 2.6))
    axes = figure.subplots()
    percent = 100 * np.asarray(top1, float)
    shown = axes.imshow(percent, cmap="viridis", origin="lower", aspect="auto")
    middle = (np.nanmin(percent) + np.nanmax(percent)) / 2
    for (row, column), value in np.ndenumerate(percent):
        if np.isfinite(value):
            colour = "white" if value < middle else "black"
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=colour)
    axes.set(title=title, xlabel="locality strength α", ylabel="GPSA layers")
    axes.set_xticks(range(len(strengths)), [f"{value:g}" for value in strengths])
    axes.set_yticks(range(len(layers)), [str(count) for count in layers])
    axes.grid(visible=False)
    figure.colorbar(shown, label="top-1 (%)")
    return figure
