"""Attention, rollout and gates laid over a photograph."""

import dataclasses
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from convit_jax.analysis.figures import style
from convit_jax.analysis.figures.maps import AttentionRow, frame_patch, log_norm

# Height of the upper part, and the smallest and largest width of a head's panel, in inches.
_UPPER, _NARROWEST, _WIDEST = 2.1, 0.85, 1.5
# The photograph under attention: grey, so that colour is attention alone, and this share of its
# contrast. The opacity of the weakest and of the strongest attention.
_CONTRAST, _OPACITY = 0.6, (0.2, 0.85)
# Luminance of red, green and blue (ITU-R BT.601).
_LUMINANCE = np.array([0.299, 0.587, 0.114])


@dataclasses.dataclass(frozen=True, eq=False)
class Overlay:
    """What one model does with a photograph.

    Attributes:
        name: the model's name.
        photograph: uint8 [height, width, channels], the crop that the model saw.
        classes: (name, probability) of the most likely class first; may be empty.
        rollout: [rows, columns], the share of each patch in what is classified.
        gates: σ(λ), [G, H].
        rows: the layers whose attention is shown.
    """

    name: str
    photograph: np.ndarray
    classes: Sequence[tuple[str, float]]
    rollout: np.ndarray
    gates: np.ndarray
    rows: Sequence[AttentionRow]


@style.styled
def overlays(models: Sequence[Overlay]) -> Figure:
    """Plot, for each model, the photograph, its rollout and gates, and a row of heads per layer."""
    num_heads = max(len(row.attention) for model in models for row in model.rows)
    cell = float(np.clip((style.PAGE - 1.0) / num_heads, _NARROWEST, _WIDEST))
    width = max(style.PAGE, num_heads * (cell + 0.06) + 1.0)
    norm = log_norm([row.attention for model in models for row in model.rows])
    heights = []
    for model in models:
        height, across = model.photograph.shape[:2]
        heights += [_UPPER, (cell * height / across + 0.2) * len(model.rows) + 0.1]
    figure = Figure(figsize=(width, sum(heights)))
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    for number, model in enumerate(models):
        _plot_model(parts[2 * number], model)
        _plot_heads(parts[2 * number + 1], model, norm, num_heads)
    return figure


def _plot_model(figure: SubFigure, model: Overlay) -> None:
    """Plot the photograph, the rollout and, if the model has gates, the gates."""
    panels = figure.subplots(1, 3)
    _show_photograph(panels[0], model.photograph, model.rows[0])
    top = f": {model.classes[0][0]}, {model.classes[0][1]:.0%}" if model.classes else ""
    panels[0].set_title(f"{model.name}{top}")
    low, high = model.rollout.min(), model.rollout.max()
    _lay_over(panels[1], model.photograph, (model.rollout - low) / max(high - low, 1e-12))
    panels[1].set_title(f"rollout, from {low:.2%} to {high:.2%} a patch")
    axes = panels[2]
    axes.set_axis_off()
    if model.gates.size:
        axes.set_axis_on()
        image = axes.imshow(model.gates, cmap="cividis", vmin=0, vmax=1, aspect="auto")
        axes.set(title="gates σ(λ)", xlabel="head", ylabel="layer")
        for axis, count in ((axes.xaxis, model.gates.shape[1]), (axes.yaxis, len(model.gates))):
            step = 1 if count <= 10 else 2
            axis.set_ticks(range(0, count, step), [str(n + 1) for n in range(0, count, step)])
        axes.grid(visible=False)
        figure.colorbar(image, ax=axes, pad=0.02)


def _plot_heads(
    figure: SubFigure, model: Overlay, norm: mpl.colors.LogNorm, num_heads: int
) -> None:
    panels = figure.subplots(len(model.rows), num_heads, squeeze=False)
    for row, axes in zip(model.rows, panels, strict=True):
        axes[0].set_ylabel(row.label, fontsize=7)
        for head, panel in enumerate(axes):
            if head >= len(row.attention):
                panel.set_axis_off()
                continue
            attention = np.maximum(row.attention[head], norm.vmin or 0.0)
            _lay_over(panel, model.photograph, norm(attention))
            height, width = model.photograph.shape[:2]
            rows, columns = row.attention.shape[1:]
            frame_patch(panel, row.query, height / rows, width / columns)
            number = f"head {head + 1}"
            title = number if row.gates is None else f"{head + 1}, σ = {row.gates[head]:.2f}"
            panel.set_title(title, fontsize=7, pad=2)
    mappable = mpl.cm.ScalarMappable(norm, style.OVERLAY)
    label = "attention (log scale)"
    figure.colorbar(mappable, ax=panels, label=label, pad=0.01, aspect=30, fraction=0.04)


def _show_photograph(axes: Axes, photograph: np.ndarray, row: AttentionRow) -> None:
    height, width = photograph.shape[:2]
    pixels = photograph[..., 0] if photograph.shape[-1] < 3 else photograph[..., :3]
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    frame_patch(axes, row.query, height / row.attention.shape[1], width / row.attention.shape[2])


def _lay_over(axes: Axes, photograph: np.ndarray, strength: np.ndarray) -> None:
    """Lay colours over a photograph: `strength`, [rows, columns] in [0, 1], decides both."""
    height, width = photograph.shape[:2]
    grey = photograph[..., 0] if photograph.shape[-1] < 3 else photograph[..., :3] @ _LUMINANCE
    axes.imshow(_CONTRAST * grey, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    strength = np.asarray(strength)
    colours = style.OVERLAY(strength)
    colours[..., 3] = _OPACITY[0] + (_OPACITY[1] - _OPACITY[0]) * strength
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axes.imshow(colours, extent=extent, interpolation="nearest")
    axes.set(xticks=(), yticks=())
    axes.grid(visible=False)
    axes.spines[:].set_visible(True)
