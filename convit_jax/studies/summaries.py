"""Means over seeds of what a study came to, as the paper's tables and figures have them."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

from convit_jax.studies.results import Mean, Result
from convit_jax.studies.variants import TABLE_3, UNCHANGED

Key = TypeVar("Key", bound=Hashable)


def efficiency(results: Iterable[Result], metric: str, model: str) -> dict[float, Mean]:
    """Of a model as it is, by the fraction of the examples (paper Table 2).

    Args:
        results: of a whole study.
        metric: a field of `Result`, such as top1.
        model: its name.
    """
    chosen = [r for r in results if r.model == model and r.variant in ("", UNCHANGED)]
    return _means(chosen, metric, lambda r: r.fraction)


def ablation(results: Iterable[Result], model: str) -> dict[tuple[str, float], Mean]:
    """Top-1 by (row, fraction) of Table 3, if a row other than the first was trained."""
    chosen = [r for r in results if r.model == model and r.variant in TABLE_3]
    if {r.variant for r in chosen} <= {UNCHANGED}:
        return {}
    return _means(chosen, "top1", lambda r: (r.variant, r.fraction))


def grid(
    results: Iterable[Result], model: str, fraction: float
) -> dict[tuple[float | None, int], Mean]:
    """Top-1 by (locality strength, GPSA layers) of Fig. 8a, if more than one was trained.

    Where there are no GPSA layers the strength is None.
    """
    chosen = [
        r
        for r in results
        if (r.model, r.fraction) == (model, fraction)
        and (r.variant == UNCHANGED or r.variant not in ("", *TABLE_3))
    ]
    gpsa = [r.locality_strength for r in chosen if r.gpsa_layers]
    # Without a convolutional initialisation there is no strength, and no such figure.
    if len({r.variant for r in chosen}) < 2 or not gpsa or None in gpsa:
        return {}
    return _means(chosen, "top1", lambda r: (r.locality_strength, r.gpsa_layers))


def fractions(results: Iterable[Result]) -> list[float]:
    """Those that some cell of a study has, smallest first."""
    return sorted({r.fraction for r in results})


def _means(results: Sequence[Result], metric: str, key: Callable[[Result], Key]) -> dict[Key, Mean]:
    values: dict[Key, list[float]] = {}
    for result in sorted(results, key=lambda r: r.fraction):
        values.setdefault(key(result), []).append(getattr(result, metric))
    return {k: Mean.of(v) for k, v in values.items()}
