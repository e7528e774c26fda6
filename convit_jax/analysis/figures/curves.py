"""Gates and non-locality, over training and by layer (paper Fig. 5, 6, 13 and 14)."""

import math
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from convit_jax.analysis.figures import style
from convit_jax.analysis.history import History

_NONLOCALITY = "non-locality (patches)"
_GATE = "gate σ(λ)"


@style.styled
def nonlocality_over_training(histories: Mapping[str, History]) -> Figure:
    """Plot each layer's non-locality during training, models side by side (paper Fig. 5, 13).

    Args:
        histories: training history of each model, by name.
    """
    width = style.COLUMN if len(histories) == 1 else style.PAGE
    figure = Figure(figsize=(width, 2.4))
    panels = figure.subplots(1, len(histories), sharey=True, squeeze=False)[0]
    depth = max(history.nonlocality.shape[1] for history in histories.values())
    colours = style.ordered_colours(depth)
    for axes, (name, history) in zip(panels, histories.items(), strict=True):
        for layer, values in enumerate(history.nonlocality.T):
            _plot_line(axes, history.epochs, values, colours[layer])
        axes.set(title=name, xlabel="epoch")
    panels[0].set_ylabel(_NONLOCALITY)
    _add_colour_bar(figure, panels, depth, "layer")
    return figure


@style.styled
def gates_over_training(history: History, name: str = "") -> Figure:
    """Plot σ(λ) of each head during training, a panel for each layer (paper Fig. 6 and 14).

    The black line is the mean over heads.
    """
    num_layers, num_heads = history.gates.shape[1:]
    columns = min(num_layers, 5)
    rows = math.ceil(num_layers / columns)
    figure = Figure(figsize=(style.PAGE, 0.5 + 1.35 * rows))
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    colours = style.ordered_colours(num_heads)
    for layer, axes in enumerate(panels[:num_layers]):
        for head in range(num_heads):
            _plot_line(axes, history.epochs, history.gates[:, layer, head], colours[head])
        _plot_line(axes, history.epochs, history.gates[:, layer].mean(axis=-1), "black", width=2)
        axes.set_title(f"layer {layer + 1}")
    for axes in panels[num_layers:]:
        axes.set_axis_off()
    figure.supxlabel("epoch", fontsize=8)
    figure.supylabel(_GATE, fontsize=8)
    figure.suptitle(name, fontsize=8)
    _add_colour_bar(figure, panels, num_heads, "head")
    return figure


@style.styled
def nonlocality_by_layer(nonlocality: Mapping[str, np.ndarray]) -> Figure:
    """Plot the non-locality of each layer: the mean over heads as a line, each head as a dot.

    Args:
        nonlocality: [L, H] of each model, by name.
    """
    figure, axes = style.new_figure(2.4)
    for index, (name, values) in enumerate(nonlocality.items()):
        look = style.model_style(index)
        layers = np.arange(1, len(values) + 1)
        axes.plot(layers, values.mean(axis=1), label=name, **look)
        _plot_dots(axes, values, [look["color"]] * values.shape[1], index, len(nonlocality))
    axes.set(xlabel="layer", ylabel=_NONLOCALITY, ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(nonlocality) > 1:
        figure.legend(loc="outside upper center", ncols=2)
    return figure


@style.styled
def gates_by_layer(gates: np.ndarray, name: str = "") -> Figure:
    """Plot the final σ(λ) of each head, coloured, and their mean in black (end of Fig. 6).

    Args:
        gates: σ(λ), [G, H].
        name: name of the model, for the title.
    """
    figure, axes = style.new_figure(2.4)
    colours = style.ordered_colours(gates.shape[1])
    _plot_dots(axes, gates, colours, 0, 1, size=12)
    layers = np.arange(1, len(gates) + 1)
    axes.plot(layers, gates.mean(axis=1), color="black", marker="_", label="mean over heads")
    axes.set(xlabel="layer", ylabel=_GATE, ylim=(-0.03, 1.03), title=name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    _add_colour_bar(figure, np.array([axes]), gates.shape[1], "head")
    return figure


def _plot_line(
    axes: Axes, epochs: np.ndarray, values: np.ndarray, colour: Any, width: float | None = None
) -> None:
    """Plot a curve, or a dot if there is only one evaluation."""
    marker = "o" if len(epochs) == 1 else None
    axes.plot(epochs, values, color=colour, marker=marker, linewidth=width)


def _plot_dots(
    axes: Axes, values: np.ndarray, colours: Any, index: int, num_models: int, size: float = 5
) -> None:
    """Plot a dot for each head of each layer, [L, H], side by side so that all are visible."""
    num_layers, num_heads = values.shape
    spread = np.linspace(-0.12, 0.12, num_heads) if num_heads > 1 else np.zeros(1)
    offset = 0.3 * (index - (num_models - 1) / 2) / num_models
    for layer in range(num_layers):
        x = layer + 1 + offset + spread
        axes.scatter(x, values[layer], s=size, c=colours, alpha=0.75, linewidths=0, zorder=3)


def _add_colour_bar(figure: Figure, panels: np.ndarray, count: int, label: str) -> None:
    """Add a colour bar for layers or heads, numbered from 1."""
    norm = mpl.colors.BoundaryNorm(np.arange(count + 1) + 0.5, count)
    colours = mpl.colors.ListedColormap(style.ordered_colours(count))
    bar = figure.colorbar(
        mpl.cm.ScalarMappable(norm, colours), ax=list(panels), label=label, pad=0.02
    )
    bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    bar.ax.minorticks_off()
