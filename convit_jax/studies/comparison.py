"""The models of a study compared with each other, seed by seed.

Runs of the same seed see the same images in the same order with the same augmentation, so their
difference is less noisy than the difference of two means.
"""

from collections.abc import Iterable, Mapping, Sequence

from convit_jax.config import Config, architecture
from convit_jax.studies.results import Mean, Result
from convit_jax.studies.summaries import DEIT, full_name
from convit_jax.studies.variants import ROWS

Groups = Mapping[str, Sequence[Result]]


def group_by_model(results: Iterable[Result], models: Sequence[str]) -> dict[str, list[Result]]:
    """Return the results of each model and of each of its `ROWS` by full name.

    Args:
        results: results of all cells; points of Fig. 8a are left out.
        models: names of all models, in order.
    """
    rows = ["", *ROWS]
    compared = [r for r in results if r.variant in rows]
    groups: dict[str, list[Result]] = {}
    for result in sorted(compared, key=lambda r: (models.index(r.model), rows.index(r.variant))):
        groups.setdefault(full_name(result), []).append(result)
    return groups


def plain_transformer(groups: Groups, configs: Mapping[str, Config]) -> str | None:
    """Return the name of the first group that is a DeiT with its own initialisation, or None.

    Args:
        groups: see `group_by_model`.
        configs: config of each model by name.
    """
    for name, (first, *_) in groups.items():
        a = architecture(configs[first.model], first.classes)
        if first.variant == DEIT or (not a.gpsa_layers and a.init == "default"):
            return name
    return None


def differences(results: Iterable[Result], others: Iterable[Result]) -> dict[float, Mean]:
    """Return the top-1 of a model minus that of another by fraction, over the seeds both have."""
    pairs = _paired(results, others)
    return {f: Mean.from_values([ours - theirs for ours, theirs in pairs[f]]) for f in pairs}


def relative_errors(results: Iterable[Result], others: Iterable[Result]) -> dict[float, Mean]:
    """Return the top-1 error of a model over that of another by fraction.

    It is 1 + the mean difference over the other model's mean error, with the interval of that
    difference, so that 1 is outside of the interval exactly if 0 is outside of that of
    `differences`. Fractions at which the other model has no error are left out.
    """
    ratios = {}
    for fraction, pairs in _paired(results, others).items():
        error = 1 - Mean.from_values([theirs for _, theirs in pairs]).mean
        if error > 0:
            ratios[fraction] = Mean.from_values(
                [1 + (theirs - ours) / error for ours, theirs in pairs]
            )
    return ratios


def _paired(
    results: Iterable[Result], others: Iterable[Result]
) -> dict[float, list[tuple[float, float]]]:
    """Return the top-1 of both models for each seed they share, by fraction, smallest first."""
    theirs = {(r.fraction, r.seed): r.top1 for r in others}
    pairs: dict[float, list[tuple[float, float]]] = {}
    for result in sorted(results, key=lambda r: (r.fraction, r.seed)):
        at = result.fraction, result.seed
        if at in theirs:
            pairs.setdefault(result.fraction, []).append((result.top1, theirs[at]))
    return pairs
