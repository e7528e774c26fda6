"""Everything that is found out about one model, as plain arrays: what figures and tables show."""

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
    """What a model learned. L layers, of which the first G are GPSA, H heads.

    Attributes:
        name: what the model is called in figures.
        architecture: the model's.
        gates: σ(λ), [G, H].
        geometry: centre, strength and span of the heads of the GPSA layers.
        positional_nonlocality: [G, H], of the positional half alone.
        locality: non-locality, entropy and attention to the class token, [L, H] each.
        query: (row, column) of the patch that the maps below are of.
        images: uint8 [P, height, width, channels], the images of the pictures.
        maps: float32 [L, P, H, rows, columns], what `query` attends to.
        positional_maps: [G, H, rows, columns], by position alone.
        initial_maps: [H, rows, columns], at the convolutional initialisation; None without one.
        history: of the training, where it is known.
        top1: share of right answers under each mask, (kind, layers), where labels were there.
        chance: the share that guessing gets right.
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


class _Normalised:
    """Images that are normalised when some of them are asked for, to bound memory."""

    def __init__(self, pixels: np.ndarray, preprocessing: Preprocessing) -> None:
        self._pixels, self._preprocessing = pixels, preprocessing

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, some: slice) -> np.ndarray:
        return self._preprocessing.normalise(self._pixels[some])


def find_out(
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
    """Looks at a model and at what it does with images.

    Args:
        name: what to call it.
        model: any of the named ones, or another.
        pixels: uint8 [B, height, width, channels], as the model sees them.
        preprocessing: how they are normalised.
        pictures: of how many of them, at even distances, attention is shown.
        query: (row, column) of the patch whose attention is shown; None: the middle one.
        variant: of non-locality, see `locality.VARIANTS`.
        history: of the training, where it is known.

    Raises:
        InputError: no images, or such as the model does not take; a query outside the grid.
    """
    a = model.architecture
    query = attention.centre_of(a.grid) if query is None else query
    attention.check_query(query, a.grid)
    shown = pixels[data.evenly_spaced(len(pixels), pictures)]
    return Findings(
        name=name,
        architecture=a,
        gates=np.asarray(locality.gates(model)),
        geometry=locality.head_geometry(model),
        positional_nonlocality=np.asarray(locality.positional_nonlocality(model)),
        locality=locality.measure_locality(
            model, _Normalised(pixels, preprocessing), variant=variant
        ),
        query=query,
        images=shown,
        maps=attention.attention_from(model, preprocessing.normalise(shown), query),
        positional_maps=attention.positional_attention_from(model, query),
        initial_maps=attention.initial_attention_from(a, query),
        history=history,
    )


def head_records(findings: Findings) -> list[dict[str, Any]]:
    """A record for each head of each layer, both counted from 1; None where there is no value."""
    f, records = findings, []
    for layer in range(f.architecture.depth):
        gated = layer < len(f.gates)
        for head in range(f.architecture.num_heads):
            at = (layer, head)
            records.append(
                {
                    "model": f.name,
                    "layer": layer + 1,
                    "head": head + 1,
                    "gate": _number(f.gates[at]) if gated else None,
                    "positional_share": _number(f.gates[at]) if gated else 0.0,
                    "nonlocality": _number(f.locality.nonlocality[at]),
                    "positional_nonlocality": _number(f.positional_nonlocality[at])
                    if gated
                    else None,
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
    """A record for each layer: means over heads."""
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
    """A record for each mask that accuracy was measured under."""
    return [
        {"model": findings.name, "masked": kind, "layers": layers, "top1": share}
        for (kind, layers), share in (findings.top1 or {}).items()
    ]


def history_records(findings: Findings) -> list[dict[str, Any]]:
    """A record for each layer at each evaluation of the training."""
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
    """Records as a table with a heading; an empty field where there is no value."""
    columns = dict.fromkeys(name for record in records for name in record)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
