"""Results of a study as markdown tables like the paper's Tables 2 and 3 and its Fig. 8a."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from convit_jax.analysis.published import ABLATIONS, SAMPLE_EFFICIENCY
from convit_jax.config import Config
from convit_jax.studies import comparison, summaries
from convit_jax.studies.results import Mean, Result
from convit_jax.studies.variants import TABLE_3

_RIVALS = {
    "a": "ConViT",
    "vanilla": "positional attention without a gate (paper Fig. 9)",
    "e": "DeiT",
    "mimetic": "DeiT, mimetic initialisation",
    "impulse": "DeiT, impulse initialisation",
}
# Top-5 is reported from this number of classes on.
_CLASSES_FOR_TOP5 = 20
# More models than this have a row each in Table 2, rather than a column.
_MAX_COLUMNS = 2
_CAPTION = (
    "In percent, at the end of training; mean over seeds {seeds} ± half of its 95 % confidence "
    "interval (Student's t). Every cell saw {seen} images, including repetitions."
)

_DIFFERENCES = (
    "Points of top-1, paired by seed: mean ± half of its 95 % confidence interval (Student's t). "
    "Bold where the interval does not contain 0; of twenty differences that are only noise, one "
    "would be bold. The choice of the test images is not part of the interval."
)


def markdown(
    results: Sequence[Result], configs: Mapping[str, Config], zoo: Mapping[str, str]
) -> str:
    """Return all tables of the results, with headings.

    Args:
        results: results of the finished cells.
        configs: config of each model by name, in order; gaps are those of the first to each other
            model.
        zoo: for ImageNet, the name in `list_models()` of each model, to add published results;
            otherwise empty.
    """
    models = list(configs)
    parts = ["# Sample efficiency (paper Table 2)", _caption(results)]
    metrics = {"top1": "top-1"}
    if max((r.classes for r in results), default=0) >= _CLASSES_FOR_TOP5:
        metrics["top5"] = "top-5"
    for metric, name in metrics.items():
        make_rows = _efficiency_rows if len(models) <= _MAX_COLUMNS else _efficiency_rows_by_model
        rows = list(make_rows(results, models, zoo, metric, name))
        if len(rows) > 1:
            parts.append(_markdown_table(rows))
    parts += _difference_tables(results, configs)
    for model in models:
        rows = list(_ablation_rows(results, model, zoo))
        if rows:
            parts += [f"# Ablations of {model} (paper Table 3)", "Top-1.", _markdown_table(rows)]
        rows = list(_rival_rows(results, model))
        if rows:
            parts += [f"# Rivals of {model}", "Top-1.", _markdown_table(rows)]
        for fraction in summaries.fractions(results):
            cells = summaries.grid(results, model, fraction)
            if cells:
                title = f"# {model}, {_format_percent(fraction)} of the examples (paper Fig. 8a)"
                rows = list(_grid_rows(cells, len(_seeds(results))))
                parts += [title, "Top-1.", _markdown_table(rows)]
    return "\n\n".join(parts) + "\n"


def relative_gap(ours: float, others: float) -> float:
    """Return the relative improvement of `ours` over `others`, as in the paper's Table 2."""
    return ours / others - 1


def grid_axes(cells: Mapping[tuple[float | None, int], Mean]) -> tuple[list[float], list[int]]:
    """Return all locality strengths and all numbers of GPSA layers, sorted."""
    strengths = sorted({strength for strength, _ in cells if strength is not None})
    return strengths, sorted({layers for _, layers in cells})


def grid_cell(
    cells: Mapping[tuple[float | None, int], Mean], strength: float, layers: int
) -> Mean | None:
    """Return the mean at a point of the grid; without GPSA layers the strength does not matter."""
    return cells.get((strength if layers else None, layers))


def _caption(results: Sequence[Result]) -> str:
    if not results:
        return "No cell is finished yet."
    seen = sorted({r.seen for r in results})
    seeds = ", ".join(map(str, _seeds(results)))
    return _CAPTION.format(seeds=seeds, seen=" or ".join(f"{n:,}" for n in seen))


def _efficiency_rows(
    results: Sequence[Result], models: Sequence[str], zoo: Mapping[str, str], metric: str, name: str
) -> Iterator[list[str]]:
    means = {model: summaries.efficiency(results, metric, model) for model in models}
    published = {model: SAMPLE_EFFICIENCY.get(zoo.get(model, ""), {}) for model in models}
    gaps = ["gap"] * len(models[1:])
    references = [f"{model}, paper" for model in models if published[model]]
    yield ["train fraction", "examples", *(f"{m} {name}" for m in models), *gaps, *references]
    examples = {r.fraction: r.examples for r in results}
    num_seeds = len(_seeds(results))
    for fraction in summaries.fractions(results):
        first, *other_means = [means[model].get(fraction) for model in models]
        if not any((first, *other_means)):
            continue
        row = [_format_percent(fraction), f"{examples[fraction]:,}"]
        row += [_format_mean(mean, num_seeds) for mean in (first, *other_means)]
        for mean in other_means:
            if first and mean and mean.mean:
                row.append(f"{100 * relative_gap(first.mean, mean.mean):+.0f} %")
            else:
                row.append("")
        for model in models:
            if published[model]:
                top1, top5 = published[model].get(fraction, (None, None))
                value = top1 if metric == "top1" else top5
                row.append("" if value is None else f"{value:.1f}")
        yield row


def _efficiency_rows_by_model(
    results: Sequence[Result], models: Sequence[str], zoo: Mapping[str, str], metric: str, name: str
) -> Iterator[list[str]]:
    examples = {r.fraction: r.examples for r in results}
    fractions = summaries.fractions(results)
    shown = [f"{_format_percent(f)} ({examples[f]:,} examples)" for f in fractions]
    yield [f"{name}, trained on", *shown]
    num_seeds = len(_seeds(results))
    for model in models:
        means = summaries.efficiency(results, metric, model)
        if means:
            yield [model, *(_format_mean(means.get(f), num_seeds) for f in fractions)]
        published = SAMPLE_EFFICIENCY.get(zoo.get(model, ""), {})
        if published:
            values = [published.get(f, ("", ""))[metric == "top5"] for f in fractions]
            yield [f"{model}, paper", *map(str, values)]


def _difference_tables(results: Sequence[Result], configs: Mapping[str, Config]) -> Iterator[str]:
    """Return headings and tables: the first model minus each other, and each minus the DeiT."""
    groups = comparison.group_by_model(results, list(configs))
    if len(groups) < 2:
        return
    first, *others = groups
    rows = {name: comparison.differences(groups[first], groups[name]) for name in others}
    yield from _difference_table(f"# {first} minus each other model", rows)
    deit = comparison.plain_transformer(groups, configs)
    if deit in others and len(others) > 1:
        rest = [name for name in groups if name != deit]
        rows = {name: comparison.differences(groups[name], groups[deit]) for name in rest}
        yield from _difference_table(f"# Each other model minus {deit}", rows)


def _difference_table(
    heading: str, differences: Mapping[str, Mapping[float, Mean]]
) -> Iterator[str]:
    """Return a heading and a table of differences; nothing if no model has two seeds."""
    if not any(m.count > 1 for means in differences.values() for m in means.values()):
        return
    fractions = sorted({fraction for means in differences.values() for fraction in means})
    rows = [["model", *map(_format_percent, fractions)]]
    for name, means in differences.items():
        rows.append([name, *(_format_difference(means.get(f)) for f in fractions)])
    yield from (heading, _DIFFERENCES, _markdown_table(rows))


def _format_difference(value: Mean | None) -> str:
    """Return mean ± half its interval in points, bold if it is beyond the noise."""
    if value is None or value.half_width is None:
        return ""
    text = f"{100 * value.mean:+.1f} ± {100 * value.half_width:.1f}"
    return f"**{text}**" if value.beyond_noise else text


def _ablation_rows(
    results: Sequence[Result], model: str, zoo: Mapping[str, str]
) -> Iterator[list[str]]:
    cells = summaries.ablation(results, model)
    if not cells:
        return
    fractions = sorted({fraction for _, fraction in cells}, reverse=True)
    num_seeds = len(_seeds(results))
    published = ABLATIONS.get(zoo.get(model, ""), {})
    yield [
        *("row", "train gating", "conv init", "train GPSA", "use GPSA"),
        *(_format_percent(fraction) for fraction in fractions),
        *(f"{_format_percent(fraction)}, paper" for fraction in fractions if published),
    ]
    for letter, row in TABLE_3.items():
        if any((letter, fraction) in cells for fraction in fractions):
            values = [_format_mean(cells.get((letter, f)), num_seeds) for f in fractions]
            references = [str(published[letter].get(f, "")) for f in fractions if published]
            flags = (row.train_gating, row.conv_init, row.train_gpsa, row.use_gpsa)
            marks = ["yes" if flag else "no" for flag in flags]
            yield [letter, *marks, *values, *references]


def _rival_rows(results: Sequence[Result], model: str) -> Iterator[list[str]]:
    cells = summaries.rivals(results, model)
    if not cells:
        return
    fractions = sorted({fraction for _, fraction in cells}, reverse=True)
    yield ["row", "model", *map(_format_percent, fractions)]
    for row, description in _RIVALS.items():
        values = [_format_mean(cells.get((row, f)), len(_seeds(results))) for f in fractions]
        if any(values):
            yield [row, description, *values]


def _grid_rows(
    cells: Mapping[tuple[float | None, int], Mean], num_seeds: int
) -> Iterator[list[str]]:
    strengths, layers = grid_axes(cells)
    yield ["GPSA layers", *(f"strength {strength:g}" for strength in strengths)]
    for n in reversed(layers):
        yield [str(n), *(_format_mean(grid_cell(cells, s, n), num_seeds) for s in strengths)]


def _format_mean(value: Mean | None, num_seeds: int) -> str:
    """Return mean ± half its interval in percent; and the count if it is not `num_seeds`."""
    if value is None:
        return ""
    text = f"{100 * value.mean:.1f}"
    if value.half_width is not None:
        text += f" ± {100 * value.half_width:.1f}"
    return text if value.count == num_seeds else f"{text} (n={value.count})"


def _seeds(results: Iterable[Result]) -> list[int]:
    return sorted({r.seed for r in results})


def _format_percent(fraction: float) -> str:
    return f"{100 * fraction:g} %"


def _markdown_table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
