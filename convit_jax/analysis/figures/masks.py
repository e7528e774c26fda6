"""Accuracy with masked content or position (paper Tables 5 and 6)."""

from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from convit_jax.analysis.figures import style

_CURVES = {"content": ("masking content", "s"), "position": ("masking position", "o")}


@style.styled
def accuracy_under_masks(top1: Mapping[tuple[str, int], float], chance: float) -> Figure:
    """Plot top-1 accuracy by number of masked GPSA layers, from the first.

    Args:
        top1: accuracies in [0, 1] by (kind, layers): ("none", 0), ("content", 3),
            ("position", 3), ("pos_embed", 0).
        chance: accuracy of guessing.
    """
    figure, axes = style.new_figure(2.4)
    for index, (kind, (label, marker)) in enumerate(_CURVES.items()):
        points = [(n, 100 * accuracy) for (k, n), accuracy in top1.items() if k in (kind, "none")]
        colour = style.model_style(index)["color"]
        axes.plot(*zip(*sorted(points), strict=True), marker=marker, color=colour, label=label)
    if ("pos_embed", 0) in top1:
        accuracy, label = 100 * top1["pos_embed", 0], "masking absolute positions"
        axes.axhline(accuracy, color="#666666", ls="--", lw=1, label=label)
    axes.axhline(100 * chance, color="#bbbbbb", ls=":", lw=1, label="guessing")
    axes.set(xlabel="first GPSA layers masked", ylabel="top-1 (%)", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return figure
