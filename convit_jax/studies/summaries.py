"""Means over seeds of a study's results, for the paper's tables and figures."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

from convit_jax.studies.results import Mean, Result
from convit_jax.studies.variants import RIVALS, ROWS, TABLE_3, UNCHANGED

DEIT = "e"  # the row of Table 3 that is the DeiT
Key = TypeVar("Key", bound=Hashable)


def efficiency(results: Iterable[Result], metric: str, model: str) -> dict[float, Mean]:
    """Return the mean metric of an unchanged model by fraction (paper Table 2).

    Args:
        results: results of all cells.
        metric: field of `Result`, such as top1.
        model: name of the model.
    """
    selected = [r for r in results if r.model == model and r.variant in ("", UNCHANGED)]
    return by_fraction(selected, metric)


def by_fraction(results: Sequence[Result], metric: str) -> dict[float, Mean]:
    """Return the mean metric of one model's results by fraction, smallest first."""
    return _means(results, metric, lambda r: r.fraction)


def full_name(result: Result) -> str:
    """Return the name of a result's model and variant in figures."""
    return (
        result.model if result.variant in ("", UNCHANGED) else f"{result.model}, {result.variant}"
    )


def ablation(results: Iterable[Result], model: str) -> dict[tuple[str, float], Mean]:
    """Return mean top-1 by (row, fraction) of Table 3; empty if only the first row was trained."""
    return _rows(results, model, tuple(TABLE_3), compared_with=(UNCHANGED,))


def rivals(results: Iterable[Result], model: str) -> dict[tuple[str, float], Mean]:
    """Return mean top-1 by (row, fraction) of ConViT, DeiT and `RIVALS`; empty without these."""
    shown = (UNCHANGED, DEIT)
    return _rows(results, model, (*shown, *RIVALS), compared_with=shown)


def _rows(
    results: Iterable[Result], model: str, rows: Sequence[str], compared_with: Sequence[str]
) -> dict[tuple[str, float], Mean]:
    """Return mean top-1 by (row, fraction); empty if only `compared_with` were trained."""
    selected = [r for r in results if r.model == model and r.variant in rows]
    if {r.variant for r in selected} <= set(compared_with):
        return {}
    return _means(selected, "top1", lambda r: (r.variant, r.fraction))


def grid(
    results: Iterable[Result], model: str, fraction: float
) -> dict[tuple[float | None, int], Mean]:
    """Return mean top-1 by (locality strength, GPSA layers) of Fig. 8a; empty for a single point.

    Without GPSA layers the strength is None.
    """
    selected = [
        r
        for r in results
        if (r.model, r.fraction) == (model, fraction)
        and (r.variant == UNCHANGED or r.variant not in ("", *ROWS))
    ]
    strengths = [r.locality_strength for r in selected if r.gpsa_layers]
    # Without a convolutional initialisation there is no strength, and no such figure.
    if len({r.variant for r in selected}) < 2 or not strengths or None in strengths:
        return {}
    return _means(selected, "top1", lambda r: (r.locality_strength, r.gpsa_layers))


def fractions(results: Iterable[Result]) -> list[float]:
    """Return the fractions of a study's results, smallest first."""
    return sorted({r.fraction for r in results})


def _means(results: Sequence[Result], metric: str, key: Callable[[Result], Key]) -> dict[Key, Mean]:
    """Group the results by key, and return the mean metric of each group."""
    values: dict[Key, list[float]] = {}
    for result in sorted(results, key=lambda r: r.fraction):
        values.setdefault(key(result), []).append(getattr(result, metric))
    return {k: Mean.from_values(v) for k, v in values.items()}
