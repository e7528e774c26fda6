"""What a run tells of its attention while it trains, and the same read back from its metrics."""

import dataclasses
import json
import math
import re

import numpy as np
from etils import epath

from convit_jax.errors import InputError
from convit_jax.system.paths import user_path


@dataclasses.dataclass(frozen=True, eq=False)
class History:
    """Gates and non-locality at each evaluation of a run.

    Attributes:
        epochs: float [T], when.
        nonlocality: [T, L], patches, the mean over heads (paper Eq. 8).
        gates: [T, G, H], σ(λ).
    """

    epochs: np.ndarray
    nonlocality: np.ndarray
    gates: np.ndarray


def as_scalars(gates: np.ndarray, nonlocality: np.ndarray) -> dict[str, float]:
    """What `read_history` reads of an evaluation, by name; layers and heads count from 1.

    Args:
        gates: [G, H], σ(λ).
        nonlocality: [L, H], patches (paper Eq. 8).
    """
    named = {"attention/nonlocality": nonlocality.mean()}
    for layer, heads in enumerate(nonlocality, 1):
        named[f"nonlocality/layer_{layer:02d}"] = heads.mean()
    if gates.size:
        named["attention/gate"] = gates.mean()
    for layer, heads in enumerate(gates, 1):
        for head, gate in enumerate(heads, 1):
            named[f"gate/layer_{layer:02d}/head_{head:02d}"] = gate
    return {name: float(value) for name, value in named.items()}


def read_history(workdir: str | epath.Path) -> History | None:
    """The history in a workdir's `metrics.jsonl`, or None where there is none of attention.

    Raises:
        InputError: a line of the file is damaged.
    """
    records = [record for record in read_metrics(workdir) if "nonlocality/layer_01" in record]
    if not records:
        return None
    layers = [name for name in records[0] if name.startswith("nonlocality/layer_")]
    heads = [name for name in records[0] if re.fullmatch(r"gate/layer_\d+/head_\d+", name)]
    gated = len({name.split("/")[1] for name in heads})
    gates = _column(records, heads).reshape(len(records), gated, -1 if gated else 0)
    epochs = _column(records, ["epoch"])[:, 0]
    return History(epochs, _column(records, layers), gates)


def read_metrics(workdir: str | epath.Path) -> list[dict[str, float]]:
    """The records in a workdir's `metrics.jsonl`; what was no number is NaN.

    Raises:
        InputError: a line of the file is damaged.
    """
    path = user_path(workdir) / "metrics.jsonl"
    records = []
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else (), 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number} is not JSON: {error}") from error
        records.append({k: math.nan if v is None else v for k, v in record.items()})
    return records


def _column(records: list[dict[str, float]], names: list[str]) -> np.ndarray:
    """Float [records, names], the names in order."""
    rows = [[record.get(name) for name in sorted(names)] for record in records]
    return np.array(rows, np.float64).reshape(len(records), len(names))
