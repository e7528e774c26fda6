"""A study's results as markdown, in the form of the paper's Tables 2 and 3 and of its Fig. 8a."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from convit_jax.analysis.published import ABLATIONS, SAMPLE_EFFICIENCY
from convit_jax.studies import summaries
from convit_jax.studies.results import Mean, Result
from convit_jax.studies.variants import TABLE_3, Row

# With fewer classes top-5 tells little.
_CLASSES_FOR_TOP5 = 20
_HOW = (
    "In percent, at the end of training; mean ± standard deviation over seeds {seeds}. Every cell "
    "saw {seen} images, repetitions among them."
)


def markdown(results: Sequence[Result], models: Sequence[str], zoo: Mapping[str, str]) -> str:
    """Every table that the results make, with headings.

    Args:
        results: the finished cells.
        models: names of all models, in order; gaps are those of the first over each other.
        zoo: for data that are ImageNet, the name in `list_models()` of each model, whose published
            numbers stand beside; otherwise empty.
    """
    parts = ["# Sample efficiency (paper Table 2)", _how(results)]
    metrics = {"top1": "top-1"}
    if max((r.classes for r in results), default=0) >= _CLASSES_FOR_TOP5:
        metrics["top5"] = "top-5"
    for metric, name in metrics.items():
        rows = list(_efficiency_rows(results, models, zoo, metric, name))
        if len(rows) > 1:
            parts.append(_table(rows))
    for model in models:
        rows = list(_ablation_rows(results, model, zoo))
        if rows:
            parts += [f"# Ablations of {model} (paper Table 3)", "Top-1.", _table(rows)]
        for fraction in summaries.fractions(results):
            cells = summaries.grid(results, model, fraction)
            if cells:
                title = f"# {model}, {_percent(fraction)} of the examples (paper Fig. 8a)"
                rows = list(_grid_rows(cells, len(_seeds(results))))
                parts += [title, "Top-1.", _table(rows)]
    return "\n\n".join(parts) + "\n"


def relative_gap(ours: float, others: float) -> float:
    """By what share of `others` ours is better, as in the paper's Table 2."""
    return ours / others - 1


def grid_axes(cells: Mapping[tuple[float | None, int], Mean]) -> tuple[list[float], list[int]]:
    """Locality strengths and numbers of GPSA layers, each in order."""
    strengths = sorted({strength for strength, _ in cells if strength is not None})
    return strengths, sorted({layers for _, layers in cells})


def at(cells: Mapping[tuple[float | None, int], Mean], strength: float, layers: int) -> Mean | None:
    """The cell of a point; without GPSA layers all strengths are the same."""
    return cells.get((strength if layers else None, layers))


def _how(results: Sequence[Result]) -> str:
    if not results:
        return "No cell is finished yet."
    seen = sorted({r.seen for r in results})
    seeds = ", ".join(map(str, _seeds(results)))
    return _HOW.format(seeds=seeds, seen=" or ".join(f"{n:,}" for n in seen))


def _efficiency_rows(
    results: Sequence[Result],
    models: Sequence[str],
    zoo: Mapping[str, str],
    metric: str,
    name: str,
) -> Iterator[list[str]]:
    found = {model: summaries.efficiency(results, metric, model) for model in models}
    paper = {model: SAMPLE_EFFICIENCY.get(zoo.get(model, ""), {}) for model in models}
    others = models[1:]
    gaps = [f"gap to {other}" if len(others) > 1 else "gap" for other in others]
    references = [f"{model}, paper" for model in models if paper[model]]
    yield ["train fraction", "examples", *(f"{m} {name}" for m in models), *gaps, *references]
    examples = {r.fraction: r.examples for r in results}
    seeds = len(_seeds(results))
    for fraction in summaries.fractions(results):
        means = [found[model].get(fraction) for model in models]
        if not any(means):
            continue
        row = [_percent(fraction), f"{examples[fraction]:,}", *(_mean(m, seeds) for m in means)]
        for other in means[1:]:
            both = means[0] and other and other.mean
            row.append(f"{100 * relative_gap(means[0].mean, other.mean):+.0f} %" if both else "")
        number = 0 if metric == "top1" else 1
        for model in models:
            if paper[model]:
                value = paper[model].get(fraction)
                row.append(f"{value[number]:.1f}" if value else "")
        yield row


def _ablation_rows(
    results: Sequence[Result], model: str, zoo: Mapping[str, str]
) -> Iterator[list[str]]:
    cells = summaries.ablation(results, model)
    if not cells:
        return
    fractions = sorted({fraction for _, fraction in cells}, reverse=True)
    seeds = len(_seeds(results))
    paper = ABLATIONS.get(zoo.get(model, ""), {})
    yield [
        *("row", "train gating", "conv init", "train GPSA", "use GPSA"),
        *(_percent(fraction) for fraction in fractions),
        *(f"{_percent(fraction)}, paper" for fraction in fractions if paper),
    ]
    for letter, row in TABLE_3.items():
        if any((letter, fraction) in cells for fraction in fractions):
            values = [_mean(cells.get((letter, fraction)), seeds) for fraction in fractions]
            told = [str(paper[letter].get(fraction, "")) for fraction in fractions if paper]
            yield [letter, *_marks(row), *values, *told]


def _grid_rows(cells: Mapping[tuple[float | None, int], Mean], seeds: int) -> Iterator[list[str]]:
    strengths, layers = grid_axes(cells)
    yield ["GPSA layers", *(f"strength {strength:g}" for strength in strengths)]
    for count in reversed(layers):
        yield [str(count), *(_mean(at(cells, strength, count), seeds) for strength in strengths)]


def _marks(row: Row) -> list[str]:
    flags = (row.train_gating, row.conv_init, row.train_gpsa, row.use_gpsa)
    return ["yes" if flag else "no" for flag in flags]


def _mean(value: Mean | None, seeds: int) -> str:
    """A field of a table; it says of how many seeds it is where those are not all."""
    if value is None:
        return ""
    told = f"{100 * value.mean:.1f}"
    if value.spread is not None:
        told += f" ± {100 * value.spread:.1f}"
    return told if value.count == seeds else f"{told} (n={value.count})"


def _seeds(results: Iterable[Result]) -> list[int]:
    return sorted({r.seed for r in results})


def _percent(fraction: float) -> str:
    return f"{100 * fraction:g} %"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
