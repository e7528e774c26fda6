"""Attention maps of one patch in each head (paper Fig. 7, 16 and 17)."""

import dataclasses
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from convit_jax.analysis.figures import style

# Lower end of the colour scale, as a multiple of uniform attention.
_LOWEST = 0.1


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionRow:
    """Attention maps of one layer.

    Attributes:
        label: label of the row, such as "ConViT layer 2".
        attention: [H, rows, columns], attention weights of the query.
        gates: σ(λ), [H], for the titles; None for plain attention.
        query: (row, column) of the query patch.
    """

    label: str
    attention: np.ndarray
    gates: np.ndarray | None
    query: tuple[int, int]


@style.styled
def attention_maps(image: np.ndarray | None, rows: Sequence[AttentionRow]) -> Figure:
    """Plot a row for each layer: the image, and the attention of each head on a log scale.

    Args:
        image: uint8 [height, width, channels], the model's input; None for a mean over images
            (paper Fig. 15).
        rows: layers of one or several models.
    """
    num_heads = max(len(row.attention) for row in rows)
    cell = _cell_size(num_heads)
    figure = Figure(figsize=(_figure_width(num_heads, cell), (cell + 0.2) * len(rows) + 0.35))
    first_head = 0 if image is None else 1  # the image has the first column
    panels = figure.subplots(len(rows), num_heads + first_head, squeeze=False)
    norm = log_norm([row.attention for row in rows])
    previous = None
    for row, axes in zip(rows, panels, strict=True):
        if image is not None:
            _show_image(axes[0], image, row)
        label = row.label.replace(" before", "\nbefore").replace(" layer", "\nlayer")
        axes[0].set_ylabel(label, fontsize=7)
        for head, panel in enumerate(axes[first_head:]):
            if head >= len(row.attention):
                panel.set_axis_off()
                continue
            _show_map(panel, row.attention[head], norm, row.query)
            if row.gates is not None:
                panel.set_title(f"σ = {row.gates[head]:.2f}", fontsize=7, pad=2)
            elif previous is None or previous.gates is not None:
                panel.set_title(f"head {head + 1}", fontsize=7, pad=2)
        previous = row
    _add_colour_bar(figure, panels, norm)
    return figure


@style.styled
def positional_maps(
    rows: Sequence[tuple[str, np.ndarray]], query: tuple[int, int], centres: np.ndarray | None
) -> Figure:
    """Plot the positional attention of each head, at the initialisation and after training.

    Args:
        rows: (name, [H, rows, columns]) of each row, the initialisation first.
        query: (row, column) of the query patch.
        centres: Δ of each head, [H, 2] (x, y) in patches, for the titles; or None.
    """
    num_heads = len(rows[0][1])
    cell = _cell_size(num_heads)
    figure = Figure(figsize=(_figure_width(num_heads, cell), (cell + 0.12) * len(rows) + 0.55))
    panels = figure.subplots(len(rows), num_heads, squeeze=False)
    norm = log_norm([maps for _, maps in rows])
    for number, ((name, maps), axes) in enumerate(zip(rows, panels, strict=True)):
        axes[0].set_ylabel(name, fontsize=7)
        for head, panel in enumerate(axes):
            _show_map(panel, maps[head], norm, query)
            if number == 0:
                centre = "" if centres is None else "\n({:g}, {:g})".format(*centres[head])
                size = 6 if num_heads > 9 else 7
                panel.set_title(f"head {head + 1}{centre}", fontsize=size, pad=2)
    _add_colour_bar(figure, panels, norm)
    return figure


def _cell_size(num_heads: int) -> float:
    """Return the side of a map in inches: as large as fits the page, within limits."""
    return float(np.clip((style.PAGE - 1.0) / (num_heads + 1), 0.55, 1.1))


def _figure_width(num_heads: int, cell: float) -> float:
    return (num_heads + 1) * (cell + 0.06) + 1.0


def log_norm(maps: Sequence[np.ndarray]) -> mpl.colors.LogNorm:
    """Return a common log scale, from a tenth of uniform attention to the largest value."""
    lowest = _LOWEST / max(m[0].size for m in maps)
    highest = max(float(np.nanmax(m)) for m in maps)
    return mpl.colors.LogNorm(lowest, max(highest, 2 * lowest), clip=True)


def _show_map(
    axes: Axes, attention: np.ndarray, norm: mpl.colors.LogNorm, query: tuple[int, int]
) -> None:
    axes.imshow(np.maximum(attention, norm.vmin or 0.0), cmap=style.ATTENTION, norm=norm)
    frame_patch(axes, query, 1.0, 1.0)


def _show_image(axes: Axes, image: np.ndarray, row: AttentionRow) -> None:
    height, width = image.shape[:2]
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    axes.imshow(pixels, cmap="gray", extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    rows, columns = row.attention.shape[1:]
    frame_patch(axes, row.query, height / rows, width / columns)


def frame_patch(axes: Axes, query: tuple[int, int], height: float, width: float) -> None:
    """Frame a patch in two colours, visible on dark and on light backgrounds."""
    corner = (query[1] * width - 0.5, query[0] * height - 0.5)
    for colour, line_width in (("white", 1.6), ("#1f77d4", 0.9)):
        axes.add_patch(Rectangle(corner, width, height, fill=False, ec=colour, lw=line_width))
    axes.set(xticks=(), yticks=())
    axes.grid(visible=False)
    axes.spines[:].set_visible(True)


def _add_colour_bar(figure: Figure, panels: np.ndarray, norm: mpl.colors.LogNorm) -> None:
    mappable, label = mpl.cm.ScalarMappable(norm, style.ATTENTION), "attention (log scale)"
    figure.colorbar(mappable, ax=panels, label=label, pad=0.01, aspect=30, fraction=0.04)
