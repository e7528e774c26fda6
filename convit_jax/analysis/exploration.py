"""`explore.html`: a page on which one points at a patch and sees where every head looks.

The page needs no other file. It holds the content attention of every layer, quantised; it computes
positional attention itself from v_pos, and mixes the two by any gate (paper Eq. 7).
"""

import base64
import dataclasses
import io
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from convit_jax.analysis.attention import default_layers
from convit_jax.analysis.figures import style
from convit_jax.analysis.findings import Findings
from convit_jax.analysis.image_attention import ImageAttention
from convit_jax.analysis.pages import data_url, render_page

# Weights below this share of uniform attention, 1 / T, are stored as 0.
FLOOR = 1e-3
# Numbers of levels to try, and the size to which a weight must compress for the first. The second
# always does: so attention of ConViT-S, 4.2 million weights, never takes more than 4.8 MB as text,
# which leaves 0.2 MB for the photograph.
LEVELS = (255, 110)
MAX_BITS = 6.8
# An image with fewer pixels is stored without loss, and enlarged as squares.
_SMALL = 96
_COLOURS = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Quantised:
    """Attention of a layer in steps of equal ratio: of code c ≥ 1, exp(low + step (c - 1)).

    Attributes:
        codes: uint8 [H, T, T]; 0 stands for weights below `FLOOR` / T.
        low, step: [H], of each head.
    """

    codes: np.ndarray
    low: np.ndarray
    step: np.ndarray

    @property
    def error(self) -> float:
        """The largest relative error of a weight that is not stored as 0."""
        return float(np.expm1(self.step.max() / 2))


def quantise(attention: np.ndarray, levels: int) -> Quantised:
    """Quantise float32 [H, T, T], weights in [0, 1], to `levels` levels and 0."""
    lowest = FLOOR / attention.shape[-1]
    logs = np.log(np.maximum(attention, lowest, dtype=np.float64))
    low, high = logs.min(axis=(1, 2)), logs.max(axis=(1, 2))
    step = (high - low) / (levels - 1)
    # A head of equal weights has no steps.
    steps = (logs - low[:, None, None]) / np.where(step > 0, step, 1.0)[:, None, None]
    codes = np.where(attention < lowest, 0, 1 + np.rint(steps)).astype(np.uint8)
    return Quantised(codes, low, step)


def pack(layers: Sequence[np.ndarray]) -> tuple[list[dict[str, Any]], float]:
    """Return one image's content attention as the page reads it, and its largest relative error.

    Args:
        layers: float32 [H, T, T] of each layer.
    """
    for levels in LEVELS:
        quantised = [quantise(layer, levels) for layer in layers]
        compressed = [zlib.compress(q.codes.tobytes(), 9) for q in quantised]
        if 8 * sum(map(len, compressed)) <= MAX_BITS * sum(layer.size for layer in layers):
            break
    packed = [
        {
            "tokens": q.codes.shape[-1],
            "low": q.low.tolist(),
            "step": q.step.tolist(),
            "codes": base64.b64encode(data).decode(),
        }
        for q, data in zip(quantised, compressed, strict=True)
    ]
    return packed, max(q.error for q in quantised)


def write_exploration(findings: Sequence[Findings], directory: epath.Path) -> epath.Path:
    """Write `explore.html`, which shows the images of `Findings.in_images`, into a directory.

    Returns:
        The path of the page.
    """
    models, errors = [], []
    for f in findings:
        images = []
        for image in f.in_images:
            layers, error = pack(image.content)
            images.append(_describe_image(image) | {"layers": layers})
            errors.append(error)
        models.append(_describe_model(f) | {"images": images})
    first = findings[0]
    stops = style.OVERLAY(np.linspace(0, 1, _COLOURS))[:, :3]
    page = render_page(
        "explore.html.j2",
        title=f"Where {' and '.join(f.name for f in findings)} look"
        + ("s" if len(findings) == 1 else ""),
        names=[image.name for image in first.in_images],
        models=models,
        depth=max(f.architecture.depth for f in findings),
        layer=default_layers(first.architecture)[0],
        query=((np.array(first.query) + 0.5) / first.architecture.grid).tolist(),
        colours=np.rint(255 * stops).astype(int).tolist(),
        error=max(errors),
    )
    path = directory / "explore.html"
    path.write_text(page)
    return path


def _describe_model(f: Findings) -> dict[str, Any]:
    a = f.architecture
    return {
        "name": f.name,
        "grid": list(a.grid),
        "depth": a.depth,
        "heads": a.num_heads,
        "gates": f.gates.tolist(),
        "v_pos": np.moveaxis(f.v_pos, 1, 2).tolist(),  # [G, H, 3]
    }


def _describe_image(image: ImageAttention) -> dict[str, Any]:
    height, width, channels = image.photograph.shape
    small = max(height, width) < _SMALL
    # Two channels are grey and alpha; JPEG has no alpha, and nor has what the model's eye sees.
    mode = image.photograph[..., 0] if channels < 3 else image.photograph[..., :3]
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(mode)).save(file, "PNG" if small else "JPEG", quality=85)
    return {
        "photograph": data_url(file.getvalue(), "png" if small else "jpeg"),
        "small": small,
        "shape": [height, width],
        "classes": image.classes,
        "rollout": image.rollout.round(6).ravel().tolist(),
    }
