"""One look for all figures: sizes of a two-column paper, colours that survive a grey printer."""

import functools
import io
from collections.abc import Callable
from typing import Any, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

# Widths in inches of a column and of a page of a two-column paper.
COLUMN, PAGE = 3.3, 6.8
_DPI = 200

# Ordered things (layers, heads) take their colour from a perceptually uniform map, without its
# lightest part; their order is then one of lightness too.
_ORDERED = mpl.colormaps["viridis"]
_LIGHTEST = 0.9
# Attention, from little (light) to much (dark).
ATTENTION = mpl.colormaps["magma_r"]
# Unordered things (models) differ in colour, in lightness, and in their markers.
MODELS = ("#31688e", "#d1495b", "#7a9e00", "#000000")
MARKERS = ("o", "s", "^", "D")

_SETTINGS = {
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
    # Letters as outlines: an SVG looks the same where the font is not installed.
    "svg.fonttype": "path",
    "svg.hashsalt": "convit_jax",
}

F = TypeVar("F", bound=Callable[..., Any])


def styled(draw: F) -> F:
    """A function that draws in this look, whatever matplotlib's settings are outside."""

    @functools.wraps(draw)
    def inside(*args: Any, **kwargs: Any) -> Any:
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.rcParams.update(_SETTINGS)
            return draw(*args, **kwargs)

    return inside  # type: ignore[return-value]


def ordered_colours(count: int) -> np.ndarray:
    """RGBA [count, 4], from dark to light."""
    return _ORDERED(np.linspace(0, _LIGHTEST, count))


@styled
def drawn(figure: Figure, kind: str) -> bytes:
    """A figure as a file: png or svg."""
    file = io.BytesIO()
    # No date: the same numbers make the same file.
    metadata = {"Date": None} if kind == "svg" else {}
    figure.savefig(file, format=kind, dpi=_DPI, metadata=metadata)
    return file.getvalue()
