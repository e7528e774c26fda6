"""What was found out about models, as figures (PNG and SVG), tables (CSV) and one page of HTML."""

import base64
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import jinja2
from etils import epath
from matplotlib.figure import Figure

from convit_jax.analysis import figures
from convit_jax.analysis.attention import some_layers
from convit_jax.analysis.figures.style import drawn
from convit_jax.analysis.findings import (
    Findings,
    as_csv,
    head_records,
    history_records,
    layer_records,
    mask_records,
)
from convit_jax.models.gpsa import attention_centres

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("convit_jax", "analysis"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """A figure and its words.

    Attributes:
        name: of its files.
        title: what it is.
        caption: what to see in it.
        figure: itself.
        raster: whether it holds images rather than lines.
    """

    name: str
    title: str
    caption: str
    figure: Figure
    raster: bool = False


def write_report(
    findings: Sequence[Findings],
    directory: epath.Path,
    *,
    layers: Sequence[int] | None,
    facts: Mapping[str, str],
    progress: Callable[[str], None] = lambda name: None,
) -> epath.Path:
    """Writes figures, tables and `report.html` into a directory, which is made.

    Args:
        findings: of each model.
        directory: where to.
        layers: which to show attention maps of, from 1; None: some, spread over the model.
        facts: what the page says at its top: weights, images and so on, by name.
        progress: told each file's name before it is written.

    Returns:
        Path of the page, which needs no other file.
    """
    directory.mkdir(parents=True, exist_ok=True)
    shown = []
    for picture in pictures_of(findings, layers):
        progress(picture.name)
        for kind in ("png", "svg"):
            data = drawn(picture.figure, kind)
            (directory / f"{picture.name}.{kind}").write_bytes(data)
            if kind == ("png" if picture.raster else "svg"):
                shown.append({"picture": picture, "source": _embedded(data, kind)})
    tables = {}
    for name, records in (
        ("heads", [record for f in findings for record in head_records(f)]),
        ("history", [record for f in findings for record in history_records(f)]),
        ("masks", [record for f in findings for record in mask_records(f)]),
    ):
        if records:
            text = as_csv(records)
            (directory / f"{name}.csv").write_text(text)
            tables[name] = {"records": records, "source": _embedded(text.encode(), "csv")}
    progress("report")
    page = _TEMPLATES.get_template("report.html.j2").render(
        facts=facts,
        shown=shown,
        layers={f.name: layer_records(f) for f in findings},
        masks={f.name: mask_records(f) for f in findings if f.top1},
        tables=tables,
    )
    path = directory / "report.html"
    path.write_text(page)
    return path


def pictures_of(findings: Sequence[Findings], layers: Sequence[int] | None) -> Iterator[Picture]:
    """Every figure that the findings make, the models together where they compare."""
    histories = {f.name: f.history for f in findings if f.history is not None}
    if histories:
        yield Picture(
            "nonlocality_over_training",
            "Non-locality during training",
            "How far each layer looks on average (paper Eq. 8, Fig. 5), at each evaluation; dark "
            "lines are the first layers, light ones the last. Layers that start local and rise "
            "have left the convolution; layers that stay low keep it.",
            figures.nonlocality_over_training(histories),
        )
    yield Picture(
        "nonlocality_by_layer",
        "Non-locality, layer by layer",
        "The mean over heads as a line, each head as a dot. A ConViT looks near in its first "
        "layers and far in its last; a plain transformer looks far from the beginning.",
        figures.nonlocality_by_layer({f.name: f.locality.nonlocality for f in findings}),
    )
    for number, f in enumerate(findings):
        suffix = "" if len(findings) == 1 else f"_{number + 1}"
        yield from _pictures_of_gates(f, suffix)
        if f.initial_maps is not None:
            yield _picture_of_positions(f, layers, suffix)
    for index in range(min(len(f.images) for f in findings)):
        yield _picture_of_attention(findings, layers, index)
    for number, f in enumerate(findings):
        if f.top1 and len(f.gates):
            suffix = "" if len(findings) == 1 else f"_{number + 1}"
            yield Picture(
                f"masks{suffix}",
                f"{f.name}: accuracy without content, or without position",
                "Gates set by hand in the first layers, without training (paper Tables 5 and 6). "
                "The curve that falls faster shows which of the two these layers live by.",
                figures.accuracy_under_masks(f.top1, f.chance),
            )


def _pictures_of_gates(f: Findings, suffix: str) -> Iterator[Picture]:
    if f.history is not None and f.history.gates.size:
        yield Picture(
            f"gates_over_training{suffix}",
            f"{f.name}: gates during training",
            "σ(λ) of each head, the mean in black (paper Fig. 6). All begin at 0.73; one that "
            "falls to 0 has given position up for content, one that rises to 1 is a convolution.",
            figures.gates_over_training(f.history, f.name),
        )
    if f.gates.size:
        yield Picture(
            f"gates_by_layer{suffix}",
            f"{f.name}: gates, layer by layer",
            "The share of attention that each head gives to position. In the paper's models the "
            "first layers keep some heads positional, the last none.",
            figures.gates_by_layer(f.gates, f.name),
        )


def _layers_of(f: Findings, layers: Sequence[int] | None) -> list[int]:
    return list(layers) if layers is not None else some_layers(f.architecture)


def _picture_of_positions(f: Findings, layers: Sequence[int] | None, suffix: str) -> Picture:
    rows = [("initialisation", f.initial_maps)]
    rows += [
        (f"layer {layer}", f.positional_maps[layer - 1])
        for layer in _layers_of(f, layers)
        if layer <= len(f.positional_maps)
    ]
    return Picture(
        f"positions{suffix}",
        f"{f.name}: attention by position alone",
        "What the framed patch attends to by position: at the convolutional initialisation each "
        "head looks at one neighbour, its centre (x, y) above it; below, after training. Whether a "
        "head still uses this, its gate tells.",
        figures.positional_maps(rows, f.query, attention_centres(f.architecture.num_heads)),
        raster=True,
    )


def _picture_of_attention(
    findings: Sequence[Findings], layers: Sequence[int] | None, index: int
) -> Picture:
    rows = [
        figures.AttentionRow(
            f"{f.name} layer {layer}",
            f.maps[layer - 1, index],
            f.gates[layer - 1] if layer <= len(f.gates) else None,
            f.query,
        )
        for f in findings
        for layer in _layers_of(f, layers)
    ]
    return Picture(
        f"attention_{index + 1}",
        f"Attention in image {index + 1}",
        "What the framed patch attends to, head by head, on a log scale (paper Fig. 7); σ is the "
        "head's gate. Maps with σ near 1 are the same for every image: they are position. Maps "
        "with σ near 0 follow what is in the image.",
        figures.attention_maps(findings[0].images[index], rows),
        raster=True,
    )


_MEDIA = {"png": "image/png", "svg": "image/svg+xml", "csv": "text/csv"}


def _embedded(data: bytes, kind: str) -> str:
    return f"data:{_MEDIA[kind]};base64,{base64.b64encode(data).decode()}"
