"""Show what models learned: gates, non-locality, attention maps, accuracy under masks:

    python -m convit_jax.analyze --weights runs/mine --images folder:IMAGES/val --out figures
    python -m convit_jax.analyze --weights A.pth --compare B.bin --images cat.jpg --out figures

writes figures (PNG and SVG), tables (CSV) and `report.html`, a single page with all of them. IMAGES
are files, folders or patterns such as "*.jpg", or labelled examples: tfds:NAME:SPLIT[:DIR],
folder:PATH, wds:x-{00..63}.tar, digits:test. With labels, accuracy is also measured without content
and without position (paper Tables 5 and 6). For a workdir, the course of the training is shown too,
and with --initial the model before its training beside it.

    python -m convit_jax.analyze --weights convit_small --images cat.jpg --out figures --overlay

also lays attention, its rollout and the gates over each picture, `overlay_1.png`, and writes
`explore.html`: point at a patch of the picture, and every head shows where it looks.
"""

from convit_jax.system.huge_pages import restart_with_huge_pages

if __name__ == "__main__":
    restart_with_huge_pages()

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx

from convit_jax import analysis, data
from convit_jax.analysis import locality
from convit_jax.analysis.attention import check_layers
from convit_jax.analysis.exploration import write_exploration
from convit_jax.analysis.findings import Findings, collect_findings, layer_records
from convit_jax.analysis.history import read_history
from convit_jax.analysis.image_attention import attention_in_images
from convit_jax.analysis.report import write_report
from convit_jax.console import command_line
from convit_jax.console.screen import Screen
from convit_jax.data.images.preprocessing import Preprocessing
from convit_jax.data.sources import imagenet
from convit_jax.data.sources.image_paths import find_images
from convit_jax.data.sources.opening import KINDS
from convit_jax.errors import InputError, boundary
from convit_jax.evaluation.accuracy import IMAGES_PER_DEVICE, measure_accuracy
from convit_jax.models import VisionTransformer
from convit_jax.system.cache import keep_compiled_programs
from convit_jax.system.paths import output_directory
from convit_jax.weights import Weights, initial_model, open_weights


def _parser() -> command_line.Parser:
    parser = command_line.Parser(prog="python -m convit_jax.analyze", description=__doc__)
    command_line.add_weights_flags(parser)
    add = parser.add_argument
    text = "another model to compare; may be repeated"
    add("--compare", action="append", default=[], metavar="W", help=text)
    text = "also show the model as it was before training; W is a workdir"
    add("--initial", action="store_true", help=text)
    add("--name", action="append", default=[], help="name of each model, in the same order")
    add("--images", nargs="+", required=True, metavar="D", help="see above")
    add("--out", required=True, metavar="DIR", help="output directory")
    text = "number of evenly spaced images to measure on, by default as in the paper"
    parser.add_option("--count", 1024, text)
    parser.add_option("--pictures", 3, "number of images whose attention is shown")
    add("--overlay", action="store_true", help="also overlays and explore.html, see above")
    text = "layers whose attention is shown, from 1 (default: four)"
    add("--layers", metavar="N,N…", help=text)
    add("--query", metavar="ROW,COLUMN", help="the query patch, from 0 (default: the centre)")
    add(
        "--variant",
        choices=locality.VARIANTS,
        default="propagated",
        help="measure non-locality on each layer's own input (default), or on the patch embeddings "
        "like the released code",
    )
    add("--json", action="store_true", help="also print the table of layers")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    arguments = _parser().parse_args(argv)
    for name, minimum in (("count", 1), ("pictures", 0)):
        value = getattr(arguments, name)
        command_line.expect(arguments, name, value >= minimum, f"at least {minimum}")
    shown = arguments.pictures >= 1 or not arguments.overlay
    command_line.expect(arguments, "pictures", shown, "at least 1 with --overlay")
    layers = _parse_numbers(arguments, "layers")
    row_column = _parse_numbers(arguments, "query", "ROW,COLUMN", count=2)
    query = None if row_column is None else (row_column[0], row_column[1])
    overrides = command_line.overrides(arguments.override)
    alone = not (arguments.initial and overrides)
    command_line.expect(arguments, "initial", alone, "no --override with it")
    out = output_directory(arguments.out, "--out")
    examples = _open_examples(arguments.images, arguments.count)
    keep_compiled_programs()
    with Screen() as screen:
        findings = []
        for weights, name, initial in _models(arguments):
            model = initial_model(weights) if initial else weights.model(**overrides)
            if layers is not None:
                check_layers(layers, model.architecture.depth)
            screen.show(f"measuring {name}", 0, 1)
            preprocessing = weights.preprocessing(model.architecture)
            measured = collect_findings(
                name,
                model,
                np.stack(_crops(examples, preprocessing)),
                preprocessing,
                pictures=arguments.pictures,
                query=query,
                variant=arguments.variant,
                history=read_history(weights.directory)
                if weights.directory and not initial
                else None,
            )
            if isinstance(examples, data.Source) and not initial:
                measured = _with_accuracy(measured, weights, model, examples, preprocessing)
            if arguments.overlay:
                screen.show(f"attention of {name} in each picture", 0, 1)
                pictures = _evenly_spaced(examples, arguments.pictures)
                measured = _with_pictures(measured, weights, model, pictures, preprocessing)
            findings.append(measured)
        page = write_report(
            findings,
            out,
            layers=layers,
            header=_page_header(arguments, findings),
            progress=lambda name: screen.show(f"drawing {name}", 0, 1),
        )
        exploration = write_exploration(findings, out) if arguments.overlay else None
    if arguments.json:
        for f in findings:
            for record in layer_records(f):
                print(json.dumps({"model": f.name} | record))
    else:
        print(f"wrote {page}, its figures and its tables")
        if exploration:
            print(f"wrote {exploration}, to open in a browser and explore")
    return 0


def _parse_numbers(
    arguments: argparse.Namespace,
    name: str,
    expected: str = "numbers separated by commas, such as 2,10",
    count: int | None = None,
) -> list[int] | None:
    """Return the numbers of a flag such as `--layers 2,10`, or None if it is not given."""
    text = getattr(arguments, name)
    if text is None:
        return None
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    command_line.expect(arguments, name, bool(numbers) and count in (None, len(numbers)), expected)
    return numbers


def _named_weights(arguments: argparse.Namespace) -> list[tuple[Weights, str]]:
    """Return all weights, each with a unique name for the figures."""
    opened = [open_weights(name) for name in (arguments.weights, *arguments.compare)]
    if len(arguments.name) > len(opened):
        raise InputError(f"--name is given {len(arguments.name)} times for {len(opened)} models")
    names = list(arguments.name)
    for weights in opened[len(names) :]:
        names.append(weights.likely_model() or pathlib.PurePath(weights.name).name)
    if len(set(names)) < len(names):
        raise InputError(
            f"the models are named {', '.join(names)}: expected different names, by --name for each"
        )
    return list(zip(opened, names, strict=True))


def _models(arguments: argparse.Namespace) -> list[tuple[Weights, str, bool]]:
    """Return (weights, name, whether before training) of each model that is shown."""
    shown = [(weights, name, False) for weights, name in _named_weights(arguments)]
    if arguments.initial:
        weights, name, _ = shown[0]
        shown.insert(0, (weights, f"{name} before training", True))
    return shown


def _open_examples(names: Sequence[str], count: int) -> list[str] | data.Source:
    """Return up to `count` evenly spaced images: paths, or a dataset, which has labels.

    Raises:
        InputError: no images.
    """
    if names[0].partition(":")[0] in KINDS:
        if len(names) > 1:
            raise InputError(f"--images {' '.join(names)}: expected a single dataset")
        return _evenly_spaced(data.open_source(names[0]), count)
    return _evenly_spaced(find_images(names), count)


def _evenly_spaced(examples: list[str] | data.Source, count: int) -> list[str] | data.Source:
    if isinstance(examples, data.Source):
        return data.evenly_spaced_subset(examples, count)
    return [examples[i] for i in data.evenly_spaced(len(examples), count)]


def _crops(
    examples: list[str] | data.Source, preprocessing: Preprocessing, max_zoom: int = 1
) -> list[np.ndarray]:
    """Return the cropped images: uint8 [height, width, channels] each.

    Raises:
        InputError: an image cannot be read.
    """
    message = "cannot read the image {}".format
    if isinstance(examples, list):
        return [preprocessing.crop(path, message(path), max_zoom=max_zoom) for path in examples]
    crops = []
    for index in range(len(examples)):
        name = message(examples.describe(index))
        with boundary(name, ""):
            image, _ = examples[index]
        rotate = examples.rotates_by_exif
        crops.append(preprocessing.crop(image, name, rotate=rotate, max_zoom=max_zoom))
    return crops


def _with_accuracy(
    findings: Findings,
    weights: Weights,
    model: VisionTransformer,
    examples: data.Source,
    preprocessing: Preprocessing,
) -> Findings:
    """Return the findings with accuracy under the masks of the paper's Tables 5 and 6."""
    source, class_subset = data.align_classes(
        examples, weights.class_names(), weights.num_classes()
    )
    gpsa_layers = model.architecture.gpsa_layers
    # The first three, five and ten of ten layers, as in Table 6.
    depths = sorted({max(1, round(gpsa_layers * fraction)) for fraction in (0.3, 0.5, 1)})
    masks = [("none", 0)]
    if model.pos_embed is not None:
        masks.append(("pos_embed", 0))
    if len(findings.gates):
        masks += [(kind, n) for kind in ("content", "position") for n in depths]
    top1 = {}
    for kind, count in masks:
        masked = nnx.clone(model)
        if kind == "pos_embed":
            analysis.mask_pos_embed(masked)
        elif kind == "content":
            analysis.mask_content(masked, count)
        elif kind == "position":
            analysis.mask_position(masked, count)
        top1[kind, count] = measure_accuracy(
            masked,
            source,
            preprocessing,
            batch_size=IMAGES_PER_DEVICE * jax.device_count(),
            options=data.LoaderOptions(),
            class_subset=class_subset,
        ).top1
    chance = 1 / len(class_subset or source.class_names)
    return dataclasses.replace(findings, top1=top1, chance=chance)


def _with_pictures(
    findings: Findings,
    weights: Weights,
    model: VisionTransformer,
    pictures: list[str] | data.Source,
    preprocessing: Preprocessing,
) -> Findings:
    """Return the findings with the attention of all patches in each picture."""
    classes = weights.class_names() or tuple(map(str, range(weights.num_classes())))
    records = attention_in_images(
        model,
        preprocessing.normalise(findings.images),
        _crops(pictures, preprocessing, max_zoom=2),
        _titles(pictures),
        imagenet.readable_names(classes),
    )
    return dataclasses.replace(findings, in_images=records)


def _titles(pictures: list[str] | data.Source) -> list[str]:
    """Return the name of each file, or of an example of a dataset its classes."""
    if not isinstance(pictures, data.Source):
        return [pathlib.PurePath(path).name for path in pictures]
    names = imagenet.readable_names(pictures.class_names)
    titles = []
    for index in range(len(pictures)):
        label = pictures[index][1]
        labels = np.flatnonzero(label) if np.ndim(label) else [label]
        titles.append(f"{', '.join(names[label] for label in labels)} ({pictures.name})")
    return titles


def _page_header(arguments: argparse.Namespace, findings: Sequence[Findings]) -> dict[str, str]:
    """Return the entries at the top of the page by name."""
    inputs = {"propagated": "each layer's own input", "released": "the patch embeddings"}
    header = {"title": f"What {' and '.join(f.name for f in findings)} learned"}
    sources = [arguments.weights, *arguments.compare]
    sources = [arguments.weights, *sources] if arguments.initial else sources
    for f, name in zip(findings, sources, strict=True):
        a = f.architecture
        header[f.name] = (
            f"{name}: {a.depth} layers ({a.gpsa_layers} GPSA), {a.num_heads} heads of "
            f"{a.head_dim} channels, {a.grid[0]} x {a.grid[1]} patches"
        )
    header["images"] = (
        f"{' '.join(arguments.images)}: measured on {findings[0].locality.examples:,}"
    )
    header["non-locality"] = f"measured on {inputs[arguments.variant]}"
    header["query"] = "patch in row {}, column {}, from 0".format(*findings[0].query)
    return header


if __name__ == "__main__":
    sys.exit(command_line.run("analyze", main))
