"""Accuracy during training, by model and by number of GPSA layers (paper Fig. 8b, 9 and 11)."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from convit_jax.analysis.figures import style

# Epochs that Fig. 8b shows: evenly spaced evaluations, the last one among them.
_EPOCHS_SHOWN = 6


@style.styled
def accuracy_over_training(curves: Mapping[str, np.ndarray], title: str = "") -> Figure:
    """Plot top-1 accuracy during training, a line for each model, intervals shaded.

    Args:
        curves: for each model by name, [T, 3] of epoch, mean and half the width of its confidence
            interval, both in [0, 1]; NaN for an unknown interval.
        title: title of the figure.
    """
    figure, axes = style.new_figure(2.6 + 0.07 * len(curves))
    for index, (name, points) in enumerate(curves.items()):
        look = style.model_style(index)
        epoch, mean, half = np.asarray(points, float).T * [[1], [100], [100]]
        axes.plot(epoch, mean, label=name, **look)
        axes.fill_between(epoch, mean - half, mean + half, color=look["color"], alpha=0.2, lw=0)
    axes.set(xlabel="epoch", ylabel="top-1 (%)", title=title)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@style.styled
def accuracy_by_gpsa_layers(
    top1: np.ndarray, layers: Sequence[int], epochs: np.ndarray, title: str = ""
) -> Figure:
    """Plot top-1 accuracy by number of GPSA layers, a line for each epoch (paper Fig. 8b).

    Args:
        top1: accuracies in [0, 1], [N, T].
        layers: number of GPSA layers of each row.
        epochs: epoch of each column, ascending; six of them are shown, evenly spaced.
        title: title of the figure.
    """
    figure, axes = style.new_figure(2.6)
    shown = np.unique(np.linspace(len(epochs) - 1, 0, _EPOCHS_SHOWN).round().astype(int))
    colours = style.ordered_colours(len(shown))
    for colour, column in zip(colours, shown, strict=True):
        label = f"{epochs[column]:.4g}"
        axes.plot(layers, 100 * top1[:, column], marker="o", color=mpl.colors.to_hex(colour),
                  label=label)  # fmt: skip
    axes.set(xlabel="GPSA layers", ylabel="top-1 (%)", title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside right center", title="epoch", reverse=True)
    return figure
