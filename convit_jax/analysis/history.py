"""Attention metrics of a training run: as named scalars, and read back from its workdir."""

import dataclasses
import json
import math
import re

import numpy as np
from etils import epath

from convit_jax.errors import boundary
from convit_jax.system.paths import user_path


@dataclasses.dataclass(frozen=True, eq=False)
class History:
    """Gates and non-locality at each evaluation of a run.

    Attributes:
        epochs: float [T], epoch of each evaluation.
        nonlocality: [T, L], in patches, mean over heads (paper Eq. 8).
        gates: [T, G, H], σ(λ).
    """

    epochs: np.ndarray
    nonlocality: np.ndarray
    gates: np.ndarray


def as_scalars(gates: np.ndarray, nonlocality: np.ndarray) -> dict[str, float]:
    """Return the scalars of an evaluation that `read_history` reads; layers, heads count from 1.

    Args:
        gates: [G, H], σ(λ).
        nonlocality: [L, H], in patches (paper Eq. 8).
    """
    scalars = {"attention/nonlocality": nonlocality.mean()}
    for layer, heads in enumerate(nonlocality, 1):
        scalars[f"nonlocality/layer_{layer:02d}"] = heads.mean()
    if gates.size:
        scalars["attention/gate"] = gates.mean()
    for layer, heads in enumerate(gates, 1):
        for head, gate in enumerate(heads, 1):
            scalars[f"gate/layer_{layer:02d}/head_{head:02d}"] = gate
    return {name: float(value) for name, value in scalars.items()}


def read_history(workdir: str | epath.Path) -> History | None:
    """Return the history in a workdir's `metrics.jsonl`, or None if it has no attention metrics.

    Raises:
        InputError: a line of the file is not JSON.
    """
    records = [record for record in read_metrics(workdir) if "nonlocality/layer_01" in record]
    if not records:
        return None
    layers = [name for name in records[0] if name.startswith("nonlocality/layer_")]
    heads = [name for name in records[0] if re.fullmatch(r"gate/layer_\d+/head_\d+", name)]
    num_gated = len({name.split("/")[1] for name in heads})
    gates = _columns(records, heads).reshape(len(records), num_gated, -1 if num_gated else 0)
    epochs = _columns(records, ["epoch"])[:, 0]
    return History(epochs, _columns(records, layers), gates)


def read_metrics(workdir: str | epath.Path) -> list[dict[str, float]]:
    """Return the records in a workdir's `metrics.jsonl`; null becomes NaN.

    Raises:
        InputError: a line of the file is not JSON.
    """
    path = user_path(workdir) / "metrics.jsonl"
    records = []
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else (), 1):
        with boundary(f"{path}, line {number}", "is not JSON"):
            record = json.loads(line)
        records.append({k: math.nan if v is None else v for k, v in record.items()})
    return records


def _columns(records: list[dict[str, float]], names: list[str]) -> np.ndarray:
    """Return the named values as float64 [records, names], sorted by name."""
    rows = [[record.get(name) for name in sorted(names)] for record in records]
    return np.array(rows, np.float64).reshape(len(records), len(names))
