"""Report on models: figures (PNG and SVG), tables (CSV) and a self-contained HTML page."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from etils import epath
from matplotlib.figure import Figure

from convit_jax.analysis import figures
from convit_jax.analysis.attention import default_layers
from convit_jax.analysis.figures.style import render_figure
from convit_jax.analysis.findings import (
    Findings,
    as_csv,
    head_records,
    history_records,
    layer_records,
    mask_records,
)
from convit_jax.analysis.pages import data_url, render_page
from convit_jax.models.gpsa import attention_centres


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """A figure with its title and caption.

    Attributes:
        name: stem of its file names.
        title: heading on the page.
        caption: how to read the figure.
        figure: the matplotlib figure.
        raster: whether to embed it in the page as PNG (images) rather than SVG (lines).
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
    header: Mapping[str, str],
    progress: Callable[[str], None] = lambda name: None,
) -> epath.Path:
    """Write figures, tables and `report.html` into a directory, creating it if necessary.

    Args:
        findings: findings of each model.
        directory: output directory.
        layers: layers whose attention maps are shown, from 1; None: some, evenly spaced.
        header: entries at the top of the page (title, weights, images, …) by name.
        progress: called with each file's name before it is written.

    Returns:
        Path of the page, which needs no other file.
    """
    directory.mkdir(parents=True, exist_ok=True)
    pictures = []
    for picture in make_pictures(findings, layers):
        progress(picture.name)
        for kind in ("png", "svg"):
            data = render_figure(picture.figure, kind)
            (directory / f"{picture.name}.{kind}").write_bytes(data)
            if kind == ("png" if picture.raster else "svg"):
                pictures.append({"picture": picture, "source": data_url(data, kind)})
    tables = {}
    makers = {"heads": head_records, "history": history_records, "masks": mask_records}
    for name, make_records in makers.items():
        records = [record for f in findings for record in make_records(f)]
        if records:
            text = as_csv(records)
            (directory / f"{name}.csv").write_text(text)
            tables[name] = {"records": records, "source": data_url(text.encode(), "csv")}
    progress("report")
    page = render_page(
        "report.html.j2",
        header=header,
        pictures=pictures,
        layers={f.name: layer_records(f) for f in findings},
        masks={f.name: mask_records(f) for f in findings if f.top1},
        tables=tables,
    )
    path = directory / "report.html"
    path.write_text(page)
    return path


def make_pictures(findings: Sequence[Findings], layers: Sequence[int] | None) -> Iterator[Picture]:
    """Yield all figures of the findings, with the models side by side where they are compared."""
    histories = {f.name: f.history for f in findings if f.history is not None}
    if histories:
        yield Picture(
            "nonlocality_over_training",
            "Non-locality during training",
            "Mean attention distance of each layer (paper Eq. 8, Fig. 5) at each evaluation; dark "
            "lines are the first layers, light ones the last. A layer that starts local and rises "
            "has left its convolutional initialisation; a layer that stays low has kept it.",
            figures.nonlocality_over_training(histories),
        )
    yield Picture(
        "nonlocality_by_layer",
        "Non-locality by layer",
        "Mean over heads (line) and each head (dots). The first layers of a ConViT attend to "
        "nearby patches, the last to distant ones; all layers of a plain transformer attend to "
        "distant patches.",
        figures.nonlocality_by_layer({f.name: f.locality.nonlocality for f in findings}),
    )
    suffixes = [""] if len(findings) == 1 else [f"_{n}" for n in range(1, len(findings) + 1)]
    for f, suffix in zip(findings, suffixes, strict=True):
        yield from _gate_pictures(f, suffix)
        if f.initial_maps is not None:
            yield _position_picture(f, f.initial_maps, layers, suffix)
    for index in range(min(len(f.images) for f in findings)):
        yield _attention_picture(findings, layers, index)
    if all(f.locality.examples > 1 for f in findings):
        yield _mean_picture(findings, layers)
    for index in range(min(len(f.in_images) for f in findings)):
        yield _overlay_picture(findings, layers, index)
    for f, suffix in zip(findings, suffixes, strict=True):
        if f.top1 and len(f.gates):
            yield Picture(
                f"masks{suffix}",
                f"{f.name}: accuracy without content, or without position",
                "The gates of the first layers are set to position only or content only after "
                "training (paper Tables 5 and 6). The curve that falls faster shows which of the "
                "two these layers depend on.",
                figures.accuracy_under_masks(f.top1, f.chance),
            )


def _gate_pictures(f: Findings, suffix: str) -> Iterator[Picture]:
    if f.history is not None and f.history.gates.size:
        yield Picture(
            f"gates_over_training{suffix}",
            f"{f.name}: gates during training",
            "σ(λ) of each head, and their mean in black (paper Fig. 6). All gates start at 0.73; "
            "a head whose gate falls to 0 attends by content only, one whose gate rises to 1 by "
            "position only, like a convolution.",
            figures.gates_over_training(f.history, f.name),
        )
    if f.gates.size:
        yield Picture(
            f"gates_by_layer{suffix}",
            f"{f.name}: gates by layer",
            "Weight of positional attention in each head. In the paper's models some heads of the "
            "first layers remain positional, and none of the last.",
            figures.gates_by_layer(f.gates, f.name),
        )


def _layers_to_show(f: Findings, layers: Sequence[int] | None) -> list[int]:
    return list(layers) if layers is not None else default_layers(f.architecture)


def _position_picture(
    f: Findings, initial_maps: np.ndarray, layers: Sequence[int] | None, suffix: str
) -> Picture:
    rows = [("initialisation", initial_maps)]
    rows += [
        (f"layer {layer}", f.positional_maps[layer - 1])
        for layer in _layers_to_show(f, layers)
        if layer <= len(f.positional_maps)
    ]
    return Picture(
        f"positions{suffix}",
        f"{f.name}: positional attention",
        "Positional attention of the framed patch. First row: at the convolutional initialisation, "
        "where each head attends to one neighbour, at the offset (x, y) above it. Other rows: "
        "after training. The gate of a head shows how much it still uses its positional attention.",
        figures.positional_maps(rows, f.query, attention_centres(f.architecture.num_heads)),
        raster=True,
    )


def _attention_rows(
    f: Findings, layers: Sequence[int] | None, index: int | None, prefix: str = ""
) -> list[figures.AttentionRow]:
    """Return the attention in an image, or for None averaged over images."""
    maps = f.mean_maps if index is None else f.maps[:, index]
    return [
        figures.AttentionRow(
            f"{prefix}layer {layer}",
            maps[layer - 1],
            f.gates[layer - 1] if layer <= len(f.gates) else None,
            f.query,
        )
        for layer in _layers_to_show(f, layers)
    ]


def _attention_picture(
    findings: Sequence[Findings], layers: Sequence[int] | None, index: int
) -> Picture:
    rows = [row for f in findings for row in _attention_rows(f, layers, index, f"{f.name} ")]
    return Picture(
        f"attention_{index + 1}",
        f"Attention in image {index + 1}",
        "Attention of the framed patch in each head, on a log scale (paper Fig. 7); σ is the gate. "
        "Maps with σ near 1 are positional, the same for every image; maps with σ near 0 depend on "
        "the image.",
        figures.attention_maps(findings[0].images[index], rows),
        raster=True,
    )


def _mean_picture(findings: Sequence[Findings], layers: Sequence[int] | None) -> Picture:
    rows = [row for f in findings for row in _attention_rows(f, layers, None, f"{f.name} ")]
    return Picture(
        "mean_attention",
        "Mean attention",
        "Attention of the framed patch in each head, on a log scale, averaged over up to a hundred "
        "of the images (paper Fig. 15). What remains depends on position only.",
        figures.attention_maps(None, rows),
        raster=True,
    )


def _overlay_picture(
    findings: Sequence[Findings], layers: Sequence[int] | None, index: int
) -> Picture:
    models = [
        figures.Overlay(
            f.name,
            f.in_images[index].photograph,
            f.in_images[index].classes,
            f.in_images[index].rollout,
            f.gates,
            _attention_rows(f, layers, index),
        )
        for f in findings
    ]
    return Picture(
        f"overlay_{index + 1}",
        f"Attention over image {index + 1}",
        f"{findings[0].in_images[index].name}: the crop that the model sees with its most likely "
        "class, the attention rollout (what the classified token gathers from each patch through "
        "all layers), the gates, and each head's attention of the framed patch on a log scale.",
        figures.overlays(models),
        raster=True,
    )
