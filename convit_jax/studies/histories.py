"""Accuracy during the training of a study's cells (paper Fig. 8b, 9 and 11)."""

from collections.abc import Iterable, Sequence

import numpy as np

from convit_jax.analysis.history import read_metrics
from convit_jax.studies.description import cell_directory
from convit_jax.studies.results import Mean, Result
from convit_jax.studies.summaries import full_name
from convit_jax.studies.variants import UNCHANGED


def training_curves(
    directory: str, results: Iterable[Result], fraction: float
) -> dict[str, np.ndarray]:
    """Return the accuracy of each model and variant at each evaluation, as means over seeds.

    Args:
        directory: directory of the study.
        results: results of its finished cells.
        fraction: fraction of the training examples.

    Returns:
        For each model and variant by name, [T, 3] of epoch, mean and half the width of its
        confidence interval (NaN for a single seed), at the evaluations that all seeds have; those
        without evaluations are left out.
    """
    cells: dict[str, list[dict[float, float]]] = {}
    for result in (r for r in results if r.fraction == fraction):
        history = _accuracies(directory, result)
        if history:
            cells.setdefault(full_name(result), []).append(history)
    return {name: _means(histories) for name, histories in cells.items()}


def curves_by_gpsa_layers(
    directory: str, results: Sequence[Result], model: str, fraction: float
) -> tuple[list[int], np.ndarray, np.ndarray] | None:
    """Return the accuracy at each evaluation by number of GPSA layers (paper Fig. 8b).

    Returns:
        The numbers of GPSA layers, [N]; the epochs of the evaluations that all of them have, [T];
        mean accuracies over seeds, [N, T]. None for fewer than two numbers.
    """
    by_layers = {
        r.gpsa_layers: full_name(r)
        for r in results
        if r.model == model and r.variant in (UNCHANGED, f"gpsa{r.gpsa_layers}")
    }
    own = [r for r in results if r.model == model]
    curves = training_curves(directory, own, fraction)
    layers = [n for n in sorted(by_layers) if by_layers[n] in curves]
    if len(layers) < 2:
        return None
    tables = [{epoch: mean for epoch, mean, _ in curves[by_layers[n]]} for n in layers]
    epochs = sorted(set.intersection(*map(set, tables)))
    top1 = np.array([[table[epoch] for epoch in epochs] for table in tables])
    return layers, np.array(epochs), top1


def _accuracies(directory: str, result: Result) -> dict[float, float]:
    """Return the accuracy of a cell by epoch, at each of its evaluations."""
    records = read_metrics(cell_directory(directory, result.cell))
    return {r["epoch"]: r["eval/accuracy"] for r in records if "eval/accuracy" in r}


def _means(histories: Sequence[dict[float, float]]) -> np.ndarray:
    epochs = sorted(set.intersection(*map(set, histories)))
    means = [Mean.from_values([history[epoch] for history in histories]) for epoch in epochs]
    rows = [
        (epoch, m.mean, np.nan if m.half_width is None else m.half_width)
        for epoch, m in zip(epochs, means, strict=True)
    ]
    return np.array(rows, float).reshape(-1, 3)
