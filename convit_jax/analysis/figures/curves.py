"""Gates and non-locality: over training, and layer by layer (paper Fig. 5, 6, 13 and 14)."""

import math
from collections.abc import Mapping

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
    """Non-locality of each layer at each evaluation, models side by side (paper Fig. 5 and 13).

    Args:
        histories: by the models' names.
    """
    width = style.COLUMN if len(histories) == 1 else style.PAGE
    figure = Figure(figsize=(width, 2.4))
    panels = figure.subplots(1, len(histories), sharey=True, squeeze=False)[0]
    depth = max(history.nonlocality.shape[1] for history in histories.values())
    colours = style.ordered_colours(depth)
    for axes, (name, history) in zip(panels, histories.items(), strict=True):
        for layer, values in enumerate(history.nonlocality.T):
            _line(axes, history.epochs, values, colours[layer])
        axes.set(title=name, xlabel="epoch")
    panels[0].set_ylabel(_NONLOCALITY)
    _colour_scale(figure, panels, depth, "layer")
    return figure


@style.styled
def gates_over_training(history: History, name: str = "") -> Figure:
    """σ(λ) of each head at each evaluation, a panel for each layer (paper Fig. 6 and 14).

    The black line is the mean over heads.
    """
    layers, heads = history.gates.shape[1:]
    columns = min(layers, 5)
    rows = math.ceil(layers / columns)
    figure = Figure(figsize=(style.PAGE, 0.5 + 1.35 * rows))
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    colours = style.ordered_colours(heads)
    for layer, axes in enumerate(panels[:layers]):
        for head in range(heads):
            _line(axes, history.epochs, history.gates[:, layer, head], colours[head])
        _line(axes, history.epochs, history.gates[:, layer].mean(axis=-1), "black", linewidth=2)
        axes.set_title(f"layer {layer + 1}")
    for axes in panels[layers:]:
        axes.set_axis_off()
    figure.supxlabel("epoch", fontsize=8)
    figure.supylabel(_GATE, fontsize=8)
    figure.suptitle(name, fontsize=8)
    _colour_scale(figure, panels, heads, "head")
    return figure


@style.styled
def nonlocality_by_layer(nonlocality: Mapping[str, np.ndarray]) -> Figure:
    """Non-locality of each layer: the mean over heads as a line, each head as a dot.

    Args:
        nonlocality: [L, H] by the models' names.
    """
    figure = Figure(figsize=(style.COLUMN, 2.4))
    axes = figure.subplots()
    for number, (name, values) in enumerate(nonlocality.items()):
        colour, marker = _of_model(number)
        layers = np.arange(1, len(values) + 1)
        axes.plot(layers, values.mean(axis=1), marker=marker, color=colour, label=name)
        _dots(axes, values, [colour] * values.shape[1], number, len(nonlocality))
    axes.set(xlabel="layer", ylabel=_NONLOCALITY, ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(nonlocality) > 1:
        figure.legend(loc="outside upper center", ncols=2)
    return figure


@style.styled
def gates_by_layer(gates: np.ndarray, name: str = "") -> Figure:
    """σ(λ) of each head, coloured, and the mean over heads in black (paper Fig. 6, at its end).

    Args:
        gates: [G, H].
        name: of the model, for the title.
    """
    figure = Figure(figsize=(style.COLUMN, 2.4))
    axes = figure.subplots()
    colours = style.ordered_colours(gates.shape[1])
    _dots(axes, gates, colours, 0, 1, size=12)
    layers = np.arange(1, len(gates) + 1)
    axes.plot(layers, gates.mean(axis=1), color="black", marker="_", label="mean over heads")
    axes.set(xlabel="layer", ylabel=_GATE, ylim=(-0.03, 1.03), title=name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    _colour_scale(figure, np.array([axes]), gates.shape[1], "head")
    return figure


def _line(
    axes: Axes,
    epochs: np.ndarray,
    values: np.ndarray,
    colour: object,
    label: str | None = None,
    **options: float,
) -> None:
    """A curve, with a dot where there is one evaluation only."""
    marker = "o" if len(epochs) == 1 else None
    axes.plot(epochs, values, color=colour, label=label, marker=marker, **options)


def _of_model(number: int) -> tuple[str, str]:
    return style.MODELS[number % len(style.MODELS)], style.MARKERS[number % len(style.MARKERS)]


def _dots(
    axes: Axes, values: np.ndarray, colours: object, number: int, models: int, size: float = 5
) -> None:
    """A dot for each head of each layer: [L, H], side by side so that none hides another."""
    layers, heads = values.shape
    spread = np.linspace(-0.12, 0.12, heads) if heads > 1 else np.zeros(1)
    aside = 0.3 * (number - (models - 1) / 2) / models
    for layer in range(layers):
        places = layer + 1 + aside + spread
        axes.scatter(places, values[layer], s=size, c=colours, alpha=0.75, linewidths=0, zorder=3)


def _colour_scale(figure: Figure, panels: np.ndarray, count: int, label: str) -> None:
    """A scale that tells the colours of layers or heads, from 1."""
    norm = mpl.colors.BoundaryNorm(np.arange(count + 1) + 0.5, count)
    colours = mpl.colors.ListedColormap(style.ordered_colours(count))
    scale = figure.colorbar(
        mpl.cm.ScalarMappable(norm, colours), ax=list(panels), label=label, pad=0.02
    )
    scale.ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    scale.ax.minorticks_off()
