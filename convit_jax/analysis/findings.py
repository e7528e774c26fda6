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
from convit_jax.data.images.preprocessing import Preprocessing
from convit_jax.models import Architecture, VisionTransformer


@dataclasses.dataclass(frozen=True, eq=False)
class Findings:
    """Measurements of a model. L layers, of which the first G are GPSA, H heads.

    Attributes:
        name: name of the model in figures.
        architecture: architecture of the model.
        gates: σ(λ), [G, H].
        geometry: centre, strength and span of the heads of the GPSA layers.
        positional_nonlocality: [G, H], non-locality of the positional attention.
        locality: non-locality, entropy and attention to the class token, [L, H] each.
        query: (row, column) of the patch whose attention the maps below show.
        images: uint8 [P, height, width, channels], images whose attention is shown.
        maps: float32 [L, P, H, rows, columns], attention of `query` in each image.
        positional_maps: [G, H, rows, columns], positional attention of `query`.
        initial_maps: [H, rows, columns], the same at the convolutional initialisation, or None.
        history: metrics of the training run, or None.
        top1: top-1 accuracy in [0, 1] by mask, (kind, layers), or None without labels.
        chance: accuracy of guessing.
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
    positional_maps: np.ndarray
    initial_maps: np.ndarray | None
    history: History | None = None
    top1: Mapping[tuple[str, int], float] | None = None
    chance: float = 0.0


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
        positional_maps=attention.positional_attention_from(model, query),
        initial_maps=attention.initial_attention_from(a, query),
        history=history,
    )


def head_records(findings: Findings) -> list[dict[str, Any]]:
    """Return a record for each head of each layer, counted from 1; missing values are None."""
    f, records = findings, []
    for layer, head in np.ndindex(f.architecture.depth, f.architecture.num_heads):
        at, gated = (layer, head), layer < len(f.gates)
        records.append(
            {
                "model": f.name,
                "layer": layer + 1,
                "head": head + 1,
                "gate": _number(f.gates[at]) if gated else None,
                "positional_share": _number(f.gates[at]) if gated else 0.0,
                "nonlocality": _number(f.locality.nonlocality[at]),
                "positional_nonlocality": _number(f.positional_nonlocality[at]) if gated else None,
                "entropy": _number(f.locality.entropy[at]),
                "to_class_token": _number(f.locality.to_class_token[at]),
                "centre_x": _number(f.geometry.centre[at][0]) if gated else None,
                "centre_y": _number(f.geometry.centre[at][1]) if gated else None,
                "locality_strength": _number(f.geometry.strength[at]) if gated else None,
                "span": _number(f.geometry.span[at]) if gated else None,
            }
        )
    return records


def layer_records(findings: Findings) -> list[dict[str, Any]]:
    """Return a record for each layer: means over heads."""
    f, records = findings, []
    for layer in range(f.architecture.depth):
        gated = layer < len(f.gates)
        records.append(
            {
                "layer": layer + 1,
                "kind": "GPSA" if gated else "plain",
                "nonlocality": _number(f.locality.nonlocality[layer].mean()),
                "most_local_head": _number(f.locality.nonlocality[layer].min()),
                "least_local_head": _number(f.locality.nonlocality[layer].max()),
                "gate": _number(f.gates[layer].mean()) if gated else None,
                "entropy": _number(f.locality.entropy[layer].mean()),
                "to_class_token": _number(f.locality.to_class_token[layer].mean()),
            }
        )
    return records


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
            "nonlocality": _number(h.nonlocality[time, layer]),
            **{
                f"gate_head_{head + 1}": _number(gate)
                for head, gate in enumerate(
                    h.gates[time, layer] if layer < h.gates.shape[1] else ()
                )
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


def _number(value: Any) -> float | None:
    """Return a float, or None for NaN and infinities."""
    return float(value) if np.isfinite(value) else None
