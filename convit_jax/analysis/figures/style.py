"""Common style of all figures: sizes of a two-column paper, colours that differ in greyscale."""

import functools
import io
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Widths of a column and of a page in inches.
COLUMN, PAGE = 3.3, 6.8
_DPI = 200

# Colours of ordered items (layers, heads): perceptually uniform, so that lightness shows the order
# too; the lightest part is not used.
_ORDERED = mpl.colormaps["viridis"]
_LIGHTEST = 0.9
# Colours of attention, from low (light) to high (dark).
ATTENTION = mpl.colormaps["magma_r"]
# Colours of attention over a grey photograph: the strongest is the lightest.
OVERLAY = mpl.colormaps["inferno"]
# Models differ in colour, in lightness, and in their markers; after six, in their lines.
_MODEL_COLOURS = ("#31688e", "#d1495b", "#7a9e00", "#000000", "#e8a33d", "#9a5fb5")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_LINES = ("-", "--", ":")

_SETTINGS: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "grid.color": "#e0e0e0",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "figure.constrained_layout.use": True,
    # Text as outlines, so that an SVG looks the same without the font.
    "svg.fonttype": "path",
    "svg.hashsalt": "convit_jax",
}

P = ParamSpec("P")
T = TypeVar("T")


def styled(draw: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function to draw in this style, whatever matplotlib's global settings are."""

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.rcParams.update(_SETTINGS)
            return draw(*args, **kwargs)

    return wrapper


def new_figure(height: float) -> tuple[Figure, Axes]:
    """Return a figure as wide as a column, with a single panel."""
    figure = Figure(figsize=(COLUMN, height))
    return figure, figure.subplots()


def ordered_colours(count: int) -> np.ndarray:
    """Return `count` colours from dark to light: RGBA [count, 4]."""
    return _ORDERED(np.linspace(0, _LIGHTEST, count))


def model_style(index: int) -> dict[str, Any]:
    """Return colour, marker and line style of a model, as arguments of `Axes.plot`."""
    group, number = divmod(index, len(_MODEL_COLOURS))
    return {
        "color": _MODEL_COLOURS[number],
        "marker": _MARKERS[number],
        "linestyle": _LINES[group % len(_LINES)],
    }


@styled
def render_figure(figure: Figure, kind: str) -> bytes:
    """Return the content of a png or svg file of the figure."""
    file = io.BytesIO()
    # Without a date, the same figure gives the same file.
    metadata = {"Date": None} if kind == "svg" else {}
    figure.savefig(file, format=kind, dpi=_DPI, metadata=metadata)
    return file.getvalue()
