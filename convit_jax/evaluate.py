"""Measures how well weights classify images:

    python -m convit_jax.evaluate --weights convit_tiny.pth --data tfds:imagenet2012:validation
    python -m convit_jax.evaluate --weights runs/mine --data folder:IMAGES/val --per-class

Every example counts exactly once, on one device or many, in one process or many. Weights with the
shapes and the preprocessing of a published model are compared with what was published.
"""

from convit_jax.system.huge_pages import restart_with_huge_pages

if __name__ == "__main__":
    restart_with_huge_pages()

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

import jax
from rich import box
from rich.table import Table

from convit_jax import analysis, data
from convit_jax.console import command_line
from convit_jax.console.screen import PipedConsole
from convit_jax.data.images.preprocessing import Preprocessing
from convit_jax.data.reading import EXIF_ROTATIONS
from convit_jax.data.sources import imagenet
from convit_jax.distributed.processes import join_processes, process_screen
from convit_jax.evaluation.accuracy import IMAGES_PER_DEVICE, Accuracy, measure_accuracy
from convit_jax.models import Architecture, VisionTransformer
from convit_jax.system.cache import keep_compiled_programs
from convit_jax.system.paths import output_file
from convit_jax.weights import Weights, named_model, open_weights

# ImageNet variants whose images have some of the 1,000 classes that their data sets name.
_OF_SOME_CLASSES = ("imagenet_a", "imagenet_r")
_MASKS = ("mask_pos_embed", "mask_content", "mask_position")


@dataclasses.dataclass(frozen=True)
class _Evaluation:
    """What was measured, and beside what it is reported.

    Attributes:
        measured: the accuracy.
        source: the examples.
        class_subset: classes that were told apart, if not all.
        reference: a published model with these shapes, and its result on these data.
    """

    measured: Accuracy
    source: data.Source
    class_subset: tuple[int, ...] | None
    reference: tuple[str, analysis.Published] | None


def _parser() -> command_line.Parser:
    parser = command_line.Parser(prog="python -m convit_jax.evaluate", description=__doc__)
    command_line.add_weights_flags(parser)
    parser.add_argument(
        "--data", required=True, metavar="D", help="tfds:NAME:SPLIT[:DIR], folder:PATH, digits:test"
    )
    parser.add_argument(
        "--classes-of",
        metavar="D",
        help="tell only those classes apart that occur in these data, and leave out images of "
        "others; ImageNet-A and -R are taken so by themselves",
    )
    masks = parser.add_mutually_exclusive_group()
    masks.add_argument(
        "--mask-pos-embed", action="store_true", help="without absolute positions (paper Table 5)"
    )
    masks.add_argument(
        "--mask-content",
        type=int,
        metavar="N",
        help="the first N GPSA layers attend by position alone (paper Table 6)",
    )
    masks.add_argument(
        "--mask-position",
        type=int,
        metavar="N",
        help="the first N GPSA layers attend by content alone (paper Table 6)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        help=f"images a step over all devices (default {IMAGES_PER_DEVICE} for each device)",
    )
    parser.add_argument(
        "--crop", type=float, help="share of the scaled image's side that is kept (default 0.875)"
    )
    parser.add_argument(
        "--num-workers",
        type=int,
        default=0,
        help="processes that read images; 0: a thread of this one, -1: one for each core",
    )
    parser.add_argument(
        "--max-broken",
        type=float,
        default=0.001,
        help="share of the images that may be unreadable (default 0.001)",
    )
    parser.add_argument(
        "--exif-rotation",
        default="auto",
        metavar="|".join(EXIF_ROTATIONS),
        help="whether photographs are turned upright as their EXIF says; auto: those of folder: "
        "are, those of tfds: are not, as published accuracies were measured",
    )
    parser.add_argument("--per-class", action="store_true", help="print each class's accuracy")
    parser.add_argument(
        "--confusion", metavar="FILE.csv", help="write which class (row) was taken for which"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluates as the flags say and prints what was measured."""
    arguments = _parser().parse_args(argv)
    _check(arguments)
    fields = command_line.overrides(arguments.override)
    if arguments.confusion is not None:
        output_file(arguments.confusion, "--confusion")
    keep_compiled_programs()
    with process_screen() as screen:
        weights = open_weights(arguments.weights)
        model = weights.model(**fields)
        mask = _mask(model, arguments)
        source, class_subset = _examples(arguments, weights)
        preprocessing = weights.preprocessing(model.architecture)
        if arguments.crop:
            preprocessing = dataclasses.replace(preprocessing, crop_fraction=arguments.crop)
        measured = measure_accuracy(
            model,
            source,
            preprocessing,
            batch_size=arguments.batch_size or IMAGES_PER_DEVICE * jax.device_count(),
            reading=data.Reading(
                arguments.num_workers,
                max_broken=arguments.max_broken,
                exif_rotation=arguments.exif_rotation,
            ),
            class_subset=class_subset,
            confusion=bool(arguments.per_class or arguments.confusion),
            progress=screen.counting("evaluating"),
        )
    if jax.process_index() == 0:
        name = _published_model(weights, model.architecture, preprocessing)
        reference = name and _reference(arguments, name, source, mask)
        report = _json if arguments.json else _text
        report(arguments, _Evaluation(measured, source, class_subset, reference))
        if arguments.confusion:
            measured.write_confusion(arguments.confusion, source.class_names)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    for name, holds, expected in (
        ("batch_size", arguments.batch_size is None or arguments.batch_size >= 1, "at least 1"),
        ("crop", arguments.crop is None or 0 < arguments.crop <= 1, "above 0, up to 1"),
        (
            "exif_rotation",
            arguments.exif_rotation in EXIF_ROTATIONS,
            f"one of {', '.join(EXIF_ROTATIONS)}",
        ),
        ("num_workers", arguments.num_workers >= -1, "0 or more, or -1"),
        ("max_broken", 0 <= arguments.max_broken < 1, "a share, in [0, 1)"),
    ):
        command_line.expect(arguments, name, holds, expected)


def _mask(model: VisionTransformer, arguments: argparse.Namespace) -> tuple[str, int]:
    """Masks the model as the flags say, and says how: as `analysis.published` has it."""
    if arguments.mask_pos_embed:
        analysis.mask_pos_embed(model)
        return "pos_embed", 0
    if arguments.mask_content is not None:
        analysis.mask_content(model, arguments.mask_content)
        return "content", arguments.mask_content
    if arguments.mask_position is not None:
        analysis.mask_position(model, arguments.mask_position)
        return "position", arguments.mask_position
    return analysis.NO_MASK


def _examples(
    arguments: argparse.Namespace, weights: Weights
) -> tuple[data.Source, tuple[int, ...] | None]:
    """The examples, labelled by the model's classes, and which classes are told apart."""

    def aligned(name: str) -> tuple[data.Source, tuple[int, ...] | None]:
        source = data.open_source(name)
        return data.align_classes(source, weights.class_names(), weights.num_classes())

    source, class_subset = aligned(arguments.data)
    if arguments.classes_of:
        class_subset = data.occurring_classes(aligned(arguments.classes_of)[0])
        source = data.only_classes(source, class_subset)
    elif analysis.tfds_name(arguments.data) in _OF_SOME_CLASSES:
        class_subset = data.occurring_classes(source)
    return source, class_subset


def _published_model(
    weights: Weights, architecture: Architecture, preprocessing: Preprocessing
) -> str | None:
    """The published model that weights may be those of: its shapes, classes and preprocessing."""
    name = named_model(architecture)
    may_be = (
        name is not None
        and imagenet.is_imagenet(weights.class_names() or ())
        and weights.native_image_size() == architecture.image_size == (224, 224)
        and analysis.is_published_preprocessing(name, preprocessing)
    )
    return name if may_be else None


def _reference(
    arguments: argparse.Namespace, model: str, source: data.Source, mask: tuple[str, int]
) -> tuple[str, analysis.Published] | None:
    """A published model and its result on these data, if there is one."""
    dataset = analysis.known_dataset(arguments.data, source, arguments.classes_of)
    found = analysis.published(model, dataset, mask)
    return (model, found) if found else None


def _text(arguments: argparse.Namespace, done: _Evaluation) -> None:
    measured = done.measured
    print(
        f"{arguments.weights} on {arguments.data}: top-1 {100 * measured.top1:.2f} %, top-5 "
        f"{100 * measured.top5:.2f} %, loss {measured.loss:.4f}, {measured.examples:,} examples"
    )
    if done.class_subset:
        print(f"told apart: {len(done.among):,} of the {len(done.source.class_names):,} classes")
    if measured.examples < len(done.source):
        print(f"{len(done.source) - measured.examples:,} examples were unreadable or have no label")
    if done.reference:
        model, found = done.reference
        print(f"published for {model} ({found.source}): {_compared(measured, found)}")
    if arguments.per_class:
        table = Table(box=box.SIMPLE)
        for heading in ("class", "examples", "top-1", "mostly mistaken for"):
            table.add_column(
                heading, justify="right" if heading in ("examples", "top-1") else "left"
            )
        for row in measured.per_class(done.source.class_names):
            accuracy = "" if row["accuracy"] is None else f"{100 * row['accuracy']:.1f} %"
            mistaken = row["mistaken_for"] or ""
            table.add_row(row["name"], f"{row['examples']}", accuracy, mistaken)
        PipedConsole().print(table)


def _compared(measured: Accuracy, found: analysis.Published) -> str:
    """`top-1 73.12 % (here -0.02), top-5 91.71 % (here +0.01)`."""
    parts = [
        f"{name} {there:.2f} % (here {100 * here - there:+.2f})"
        for name, there, here in (
            ("top-1", found.top1, measured.top1),
            ("top-5", found.top5, measured.top5),
        )
        if there is not None
    ]
    if found.loss is not None:
        parts.append(f"loss {found.loss:.3f} (here {measured.loss - found.loss:+.3f})")
    return ", ".join(parts)


def _json(arguments: argparse.Namespace, done: _Evaluation) -> None:
    measured, class_names = done.measured, done.source.class_names
    record: dict[str, Any] = {
        "weights": arguments.weights,
        "data": arguments.data,
        "classes": len(done.class_subset or class_names),
        **{mask: getattr(arguments, mask) for mask in _MASKS if getattr(arguments, mask)},
        **{name: getattr(measured, name) for name in ("examples", "top1", "top5", "loss")},
    }
    if done.reference:
        model, found = done.reference
        record["published"] = {"model": model, **dataclasses.asdict(found)}
    if arguments.per_class:
        record["per_class"] = measured.per_class(class_names)
    print(json.dumps(record))


if __name__ == "__main__":
    sys.exit(command_line.run("evaluate", lambda: join_processes() or main()))
