"""Accuracy without a part of what the model sees by (paper Tables 5 and 6)."""

from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from convit_jax.analysis.figures import style

_KINDS = {"content": ("masking content", "s"), "position": ("masking position", "o")}


@style.styled
def accuracy_under_masks(top1: Mapping[tuple[str, int], float], chance: float) -> Figure:
    """Top-1 against the number of first GPSA layers masked.

    Args:
        top1: shares by (kind, layers): ("none", 0), ("content", 3), ("position", 3),
            ("pos_embed", 0).
        chance: the share that guessing gets right.
    """
    figure = Figure(figsize=(style.COLUMN, 2.4))
    axes = figure.subplots()
    whole = top1["none", 0]
    for number, (kind, (label, marker)) in enumerate(_KINDS.items()):
        points = sorted((layers, share) for (what, layers), share in top1.items() if what == kind)
        layers, shares = zip((0, whole), *points, strict=True)
        percent = [100 * share for share in shares]
        axes.plot(layers, percent, marker=marker, color=style.MODELS[number], label=label)
    if ("pos_embed", 0) in top1:
        without = 100 * top1["pos_embed", 0]
        axes.axhline(without, color="#666666", ls="--", lw=1, label="masking absolute positions")
    axes.axhline(100 * chance, color="#bbbbbb", ls=":", lw=1, label="guessing")
    axes.set(xlabel="first GPSA layers masked", ylabel="top-1 (%)", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return figure
