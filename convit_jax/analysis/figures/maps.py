"""Pictures of attention: from one patch, head by head (paper Fig. 7, 16 and 17)."""

import dataclasses
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from convit_jax.analysis.figures import style

# Attention from a tenth of the even share up is told apart.
_FAINTEST = 0.1


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionRow:
    """What the heads of one layer attend to, and how it is called.

    Attributes:
        label: "ConViT layer 2".
        attention: [H, rows, columns], shares.
        gates: σ(λ), [H], for the titles; None for plain attention.
        query: (row, column) of the patch that asks.
    """

    label: str
    attention: np.ndarray
    gates: np.ndarray | None
    query: tuple[int, int]


@style.styled
def attention_maps(image: np.ndarray, rows: Sequence[AttentionRow]) -> Figure:
    """An image, and below it in each row what the heads of a layer attend to, on a log scale.

    Args:
        image: uint8 [height, width, channels], as the model saw it.
        rows: layers, of one model or several.
    """
    heads = max(len(row.attention) for row in rows)
    cell = _cell(heads)
    figure = Figure(figsize=(_width(heads, cell), (cell + 0.2) * len(rows) + 0.35))
    panels = figure.subplots(len(rows), heads + 1, squeeze=False)
    norm = _norm([row.attention for row in rows])
    before = None
    for row, axes in zip(rows, panels, strict=True):
        _show_image(axes[0], image, row)
        axes[0].set_ylabel(row.label.replace(" layer", "\nlayer"), fontsize=7)
        for head, panel in enumerate(axes[1:]):
            if head >= len(row.attention):
                panel.set_axis_off()
                continue
            _show_map(panel, row.attention[head], norm, row.query)
            if row.gates is not None:
                panel.set_title(f"σ = {row.gates[head]:.2f}", fontsize=7, pad=2)
            elif before is None or before.gates is not None:
                panel.set_title(f"head {head + 1}", fontsize=7, pad=2)
        before = row
    _scale(figure, panels, norm, "attention (log scale)")
    return figure


@style.styled
def positional_maps(
    rows: Sequence[tuple[str, np.ndarray]], query: tuple[int, int], centres: np.ndarray | None
) -> Figure:
    """Attention by position alone of each head: at the initialisation, and after training.

    Args:
        rows: (name, [H, rows, columns]), the first being the initialisation where there is one.
        query: the patch that asks.
        centres: Δ of each head, [H, 2] (x, y) in patches, for the titles; or None.
    """
    heads = len(rows[0][1])
    cell = _cell(heads)
    figure = Figure(figsize=(_width(heads, cell), (cell + 0.12) * len(rows) + 0.55))
    panels = figure.subplots(len(rows), heads, squeeze=False)
    norm = _norm([maps for _, maps in rows])
    for number, ((name, maps), axes) in enumerate(zip(rows, panels, strict=True)):
        axes[0].set_ylabel(name, fontsize=7)
        for head, panel in enumerate(axes):
            _show_map(panel, maps[head], norm, query)
            if number == 0:
                where = "" if centres is None else f"\n({centres[head][0]:g}, {centres[head][1]:g})"
                panel.set_title(f"head {head + 1}{where}", fontsize=6 if heads > 9 else 7, pad=2)
    _scale(figure, panels, norm, "attention (log scale)")
    return figure


def _cell(heads: int) -> float:
    """Side of a map in inches: as large as a page allows, within reason."""
    return float(np.clip((style.PAGE - 1.0) / (heads + 1), 0.55, 1.1))


def _width(heads: int, cell: float) -> float:
    return (heads + 1) * (cell + 0.06) + 1.0


def _norm(maps: Sequence[np.ndarray]) -> mpl.colors.LogNorm:
    """A scale for all: from a tenth of the even share to the most there is."""
    patches = max(m[0].size for m in maps)
    faintest = _FAINTEST / patches
    most = max(float(np.nanmax(m)) for m in maps)
    return mpl.colors.LogNorm(faintest, max(most, 2 * faintest), clip=True)


def _show_map(
    axes: Axes, attention: np.ndarray, norm: mpl.colors.LogNorm, query: tuple[int, int]
) -> None:
    axes.imshow(np.maximum(attention, norm.vmin), cmap=style.ATTENTION, norm=norm)
    _frame(axes, query, 1.0, 1.0)


def _show_image(axes: Axes, image: np.ndarray, row: AttentionRow) -> None:
    height, width = image.shape[:2]
    shown = image[..., 0] if image.shape[-1] == 1 else image
    axes.imshow(shown, cmap="gray", extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    rows, columns = row.attention.shape[1:]
    _frame(axes, row.query, height / rows, width / columns)


def _frame(axes: Axes, query: tuple[int, int], height: float, width: float) -> None:
    """A frame around the patch that asks, seen on dark and on light."""
    corner = (query[1] * width - 0.5, query[0] * height - 0.5)
    for colour, line in (("white", 1.6), ("#1f77d4", 0.9)):
        axes.add_patch(Rectangle(corner, width, height, fill=False, ec=colour, lw=line))
    axes.set(xticks=(), yticks=())
    axes.grid(visible=False)
    axes.spines[:].set_visible(True)


def _scale(figure: Figure, panels: np.ndarray, norm: mpl.colors.LogNorm, label: str) -> None:
    mappable = mpl.cm.ScalarMappable(norm, style.ATTENTION)
    figure.colorbar(mappable, ax=panels, label=label, pad=0.01, aspect=30, fraction=0.04)
