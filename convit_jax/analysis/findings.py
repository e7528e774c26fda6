"""All measurements of one model as plain arrays, the content of figures and tables."""

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from convit_jax import data
from convit_jax.analysis import attention, locality
from convit_jax.analysis.history import History
from convit_jax.analysis.image_attention import ImageAttention
from convit_jax.data.images.preprocessing import Preprocessing
from convit_jax.models import Architecture, VisionTransformer

# Number of images over which attention maps are averaged, as in the paper's Fig. 15.
_IMAGES_OF_MEAN = 100


@dataclasses.dataclass(frozen=True, eq=False)
class Findings:
    """Measurements of a model. L layers, of which the first G are GPSA, H heads.

    Attributes:
        name: name of the model in figures.
        architecture: architecture of the model.
        gates: σ(λ), [G, H]; [0, H] if the positional attention is vanilla.
        geometry: centre, strength and span of the heads of the GPSA layers.
        positional_nonlocality: [G, H], non-locality of the positional attention.
        locality: non-locality, entropy and attention to the class token, [L, H] each.
        query: (row, column) of the patch whose attention the maps below show.
        images: uint8 [P, height, width, channels], images whose attention is shown.
        maps: float32 [L, P, H, rows, columns], attention of `query` in each image.
        mean_maps: [L, H, rows, columns], the same, averaged over a hundred of the measured images.
        positional_maps: [G, H, rows, columns], positional attention of `query`.
        initial_maps: [H, rows, columns], the same at the convolutional initialisation, or None.
        v_pos: [G, 3, H], from which positional attention is computed (paper Eq. 5).
        history: metrics of the training run, or None.
        top1: top-1 accuracy in [0, 1] by mask, (kind, layers), or None without labels.
        chance: accuracy of guessing.
        in_images: attention of all patches in each of `images`, if it was asked for.
    """

    name: str
    architecture: Architecture
    gates: np.ndarray
    geometry: locality.HeadGeometry
    positional_nonlocality: np.ndarray
    locality: locality.Locality
    query: tuple[int, int]
    images: np.ndarray
    maps: np.ndarray
    mean_maps: np.ndarray
    positional_maps: np.ndarray
    initial_maps: np.ndarray | None
    v_pos: np.ndarray
    history: History | None = None
    top1: Mapping[tuple[str, int], float] | None = None
    chance: float = 0.0
    in_images: Sequence[ImageAttention] = ()


def collect_findings(
    name: str,
    model: VisionTransformer,
    pixels: np.ndarray,
    preprocessing: Preprocessing,
    *,
    pictures: int = 3,
    query: tuple[int, int] | None = None,
    variant: str = "propagated",
    history: History | None = None,
) -> Findings:
    """Measure a model, and its attention on images.

    Args:
        name: name of the model in figures.
        model: any vision transformer.
        pixels: uint8 [B, height, width, channels], cropped to the model's image size.
        preprocessing: normalises the pixels.
        pictures: number of evenly spaced images whose attention is shown.
        query: (row, column) of the patch whose attention is shown; None: the central one.
        variant: input of the layers, see `locality.VARIANTS`.
        history: metrics of the training run, if known.

    Raises:
        InputError: no images, images of a shape that the model does not take, or a query outside
            the grid.
    """
    a = model.architecture
    query = attention.central_patch(a.grid) if query is None else query
    attention.check_query(query, a.grid)
    images = pixels[data.evenly_spaced(len(pixels), pictures)]
    return Findings(
        name=name,
        architecture=a,
        gates=np.asarray(locality.gates(model)),
        geometry=locality.head_geometry(model),
        positional_nonlocality=np.asarray(locality.positional_nonlocality(model)),
        locality=locality.measure_locality(
            model, pixels, variant=variant, transform=preprocessing.normalise
        ),
        query=query,
        images=images,
        maps=attention.attention_from(model, preprocessing.normalise(images), query),
        mean_maps=attention.mean_attention_from(
            model,
            pixels[data.evenly_spaced(len(pixels), _IMAGES_OF_MEAN)],
            query,
            transform=preprocessing.normalise,
        ),
        positional_maps=attention.positional_attention_from(model, query),
        initial_maps=attention.initial_attention_from(a, query),
        v_pos=locality.positional_vectors(model),
        history=history,
    )


def head_records(findings: Findings) -> list[dict[str, Any]]:
    """Return a record for each head of each layer, counted from 1; missing values are None."""
    f = findings
    depth, num_heads = f.architecture.depth, f.architecture.num_heads
    columns = {
        "gate": f.gates,
        "positional_share": _positional_share(f),
        "nonlocality": f.locality.nonlocality,
        "positional_nonlocality": f.positional_nonlocality,
        "entropy": f.locality.entropy,
        "to_class_token": f.locality.to_class_token,
        "centre_x": f.geometry.centre[..., 0],
        "centre_y": f.geometry.centre[..., 1],
        "locality_strength": f.geometry.strength,
        "span": f.geometry.span,
    }
    return [
        {"model": f.name, "layer": layer + 1, "head": head + 1}
        | {name: _value_at(values, layer, head) for name, values in columns.items()}
        for layer, head in np.ndindex(depth, num_heads)
    ]


def layer_records(findings: Findings) -> list[dict[str, Any]]:
    """Return a record for each layer: means over heads."""
    f = findings
    columns = {
        "nonlocality": f.locality.nonlocality.mean(axis=1),
        "most_local_head": f.locality.nonlocality.min(axis=1),
        "least_local_head": f.locality.nonlocality.max(axis=1),
        "gate": f.gates.mean(axis=1),
        "entropy": f.locality.entropy.mean(axis=1),
        "to_class_token": f.locality.to_class_token.mean(axis=1),
    }
    return [
        {"layer": layer + 1, "kind": _kind(f.architecture, layer)}
        | {name: _value_at(values, layer) for name, values in columns.items()}
        for layer in range(f.architecture.depth)
    ]


def _positional_share(f: Findings) -> np.ndarray:
    """Return the share of positional attention: [L, H].

    Plain layers attend by content only; of vanilla positional attention it is not defined (NaN).
    """
    a = f.architecture
    share = np.zeros((a.depth, a.num_heads))
    share[: a.gpsa_layers] = f.gates if len(f.gates) else np.nan
    return share


def _kind(architecture: Architecture, layer: int) -> str:
    if layer >= architecture.gpsa_layers:
        return "plain"
    return "GPSA" if architecture.positional_attention == "gated" else "PSA"


def mask_records(findings: Findings) -> list[dict[str, Any]]:
    """Return a record for each mask under which accuracy was measured."""
    return [
        {"model": findings.name, "masked": kind, "layers": layers, "top1": top1}
        for (kind, layers), top1 in (findings.top1 or {}).items()
    ]


def history_records(findings: Findings) -> list[dict[str, Any]]:
    """Return a record for each layer at each evaluation of the training run."""
    if findings.history is None:
        return []
    h = findings.history
    return [
        {
            "model": findings.name,
            "epoch": float(epoch),
            "layer": layer + 1,
            "nonlocality": _value_at(h.nonlocality, time, layer),
            **{
                f"gate_head_{head + 1}": _value_at(h.gates, time, layer, head)
                for head in range(h.gates.shape[2] if layer < h.gates.shape[1] else 0)
            },
        }
        for time, epoch in enumerate(h.epochs)
        for layer in range(h.nonlocality.shape[1])
    ]


def as_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """Return records as CSV with a header; missing values are empty fields."""
    columns = dict.fromkeys(name for record in records for name in record)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _value_at(values: np.ndarray, *index: int) -> float | None:
    """Return a value; None for NaN, infinities and layers without one."""
    if index[0] >= len(values) or not np.isfinite(values[index]):
        return None
    return float(values[index])
