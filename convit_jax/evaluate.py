"""Measure the accuracy of weights on labelled images:

    python -m convit_jax.evaluate --weights convit_tiny.pth --data tfds:imagenet2012:validation
    python -m convit_jax.evaluate --weights runs/mine --data folder:IMAGES/val --per-class
    python -m convit_jax.evaluate --weights convit_tiny --data folder:val --knn folder:train

Every example counts exactly once, on any number of devices and processes. Weights with the shapes
and the preprocessing of a published model are compared with the published results.
"""

from convit_jax.system.huge_pages import restart_with_huge_pages

if __name__ == "__main__":
    restart_with_huge_pages()

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from convit_jax import analysis, data
from convit_jax.console import command_line
from convit_jax.console.screen import Screen, print_table
from convit_jax.data.images.preprocessing import Preprocessing
from convit_jax.data.reading import EXIF_ROTATIONS
from convit_jax.data.sources import imagenet
from convit_jax.distributed import mesh as meshes
from convit_jax.distributed.processes import join_processes, process_screen
from convit_jax.errors import InputError, naming, some
from convit_jax.evaluation.accuracy import IMAGES_PER_DEVICE, Accuracy, measure_accuracy
from convit_jax.evaluation.probing import embed_examples, probe
from convit_jax.evaluation.step import Predict
from convit_jax.models import Architecture, VisionTransformer
from convit_jax.system.cache import keep_compiled_programs
from convit_jax.system.paths import output_file
from convit_jax.weights import Weights, named_model, open_weights
from convit_jax.weights.teachers import open_teacher

# Variants of ImageNet with images of only some of the 1,000 classes in their labels.
_PARTIAL_IMAGENETS = ("imagenet_a", "imagenet_r")
_MASKS = ("mask_pos_embed", "mask_content", "mask_position")


@dataclasses.dataclass(frozen=True)
class _Evaluation:
    """Measured accuracy, and what is reported with it.

    Attributes:
        measured: the accuracy.
        source: the examples.
        class_subset: classes to which the predictions were restricted, or None for all.
        reference: name of the published model with these shapes, and its result on this data.
    """

    measured: Accuracy
    source: data.Source
    class_subset: tuple[int, ...] | None
    reference: tuple[str, analysis.Published] | None


def _parser() -> command_line.Parser:
    parser = command_line.Parser(prog="python -m convit_jax.evaluate", description=__doc__)
    command_line.add_weights_flags(parser)
    add = parser.add_argument
    text = "tfds:NAME:SPLIT[:DIR], folder:PATH, wds:x-{00..63}.tar, digits:test"
    add("--data", required=True, metavar="D", help=text)
    add(
        "--classes-of",
        metavar="D",
        help="restrict predictions and images to the classes that occur in this data; done "
        "automatically for ImageNet-A and -R",
    )
    masks = parser.add_mutually_exclusive_group()
    text = "without absolute positions (paper Table 5)"
    masks.add_argument("--mask-pos-embed", action="store_true", help=text)
    text = "the first N GPSA layers attend by position alone (paper Table 6)"
    masks.add_argument("--mask-content", type=int, metavar="N", help=text)
    text = "the first N GPSA layers attend by content alone (paper Table 6)"
    masks.add_argument("--mask-position", type=int, metavar="N", help=text)
    text = f"images per step on all devices (default {IMAGES_PER_DEVICE} per device)"
    add("--batch-size", type=int, help=text)
    text = f"centre crop as a fraction of the scaled image (default {imagenet.CROP_FRACTION})"
    add("--crop", type=float, help=text)
    text = "processes that read images; 0: a thread of this process, -1: one per core"
    parser.add_option("--num-workers", 0, text)
    parser.add_option("--max-broken", 0.001, "fraction of images that may be unreadable")
    parser.add_option(
        "--exif-rotation",
        "auto",
        "whether images are rotated as in their EXIF data; auto: in folder: but not in tfds: and "
        "wds:, as for published accuracies",
        metavar="|".join(EXIF_ROTATIONS),
    )
    add("--per-class", action="store_true", help="print each class's accuracy")
    text = "write the confusion matrix; rows are true classes"
    add("--confusion", metavar="FILE.csv", help=text)
    text = "evaluate the features rather than the head, on the data's own classes: nearest "
    text += "neighbours among these training examples, and a linear probe"
    add("--knn", metavar="D", help=text)
    text = "also measure how often its prediction is this model's: weights, or a program from "
    text += "convert --logits"
    add("--teacher", metavar="W", help=text)
    add("--json", action="store_true", help="one JSON object, for programs")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    arguments = _parser().parse_args(argv)
    _check_arguments(arguments)
    overrides = command_line.overrides(arguments.override)
    if arguments.confusion is not None:
        output_file(arguments.confusion, "--confusion")
    keep_compiled_programs()
    with process_screen() as screen:
        weights = open_weights(arguments.weights)
        model = weights.model(**overrides)
        mask = _apply_mask(model, arguments)
        preprocessing = weights.preprocessing(model.architecture)
        if arguments.crop:
            preprocessing = dataclasses.replace(preprocessing, crop_fraction=arguments.crop)
        batch_size = arguments.batch_size or IMAGES_PER_DEVICE * jax.device_count()
        options = data.LoaderOptions(
            arguments.num_workers,
            max_broken=arguments.max_broken,
            exif_rotation=arguments.exif_rotation,
        )
        if arguments.knn is not None:
            embed = functools.partial(
                embed_examples,
                model,
                preprocessing=preprocessing,
                batch_size=batch_size,
                options=options,
            )
            _evaluate_features(arguments, embed, screen)
            return 0
        source, class_subset = _open_examples(arguments, weights)
        teacher = _open_teacher(arguments, weights, model.architecture, preprocessing)
        measured = measure_accuracy(
            model,
            source,
            preprocessing,
            batch_size=batch_size,
            options=options,
            class_subset=class_subset,
            confusion=bool(arguments.per_class or arguments.confusion),
            teacher=teacher,
            progress=screen.counting("evaluating"),
        )
    if jax.process_index() == 0:
        name = _published_model(weights, model.architecture, preprocessing)
        reference = _reference(arguments, name, source, mask) if name else None
        show = _print_json if arguments.json else _print_text
        show(arguments, _Evaluation(measured, source, class_subset, reference))
        if arguments.confusion:
            measured.write_confusion(arguments.confusion, source.class_names)
    return 0


def _check_arguments(arguments: argparse.Namespace) -> None:
    a, check = arguments, functools.partial(command_line.expect, arguments)
    check("batch_size", a.batch_size is None or a.batch_size >= 1, "at least 1")
    check("crop", a.crop is None or 0 < a.crop <= 1, "above 0, up to 1")
    is_known = a.exif_rotation in EXIF_ROTATIONS
    check("exif_rotation", is_known, f"one of {', '.join(EXIF_ROTATIONS)}")
    check("num_workers", a.num_workers >= -1, "0 or more, or -1")
    check("max_broken", 0 <= a.max_broken < 1, "a fraction in [0, 1)")
    for flag in ("per_class", "confusion", "classes_of", "teacher") if a.knn is not None else ():
        if getattr(a, flag):
            raise InputError(f"--{flag.replace('_', '-')} is about the head, and --knn without it")


def _evaluate_features(
    arguments: argparse.Namespace,
    embed: Callable[..., tuple[np.ndarray, np.ndarray]],
    screen: Screen,
) -> None:
    """Print the accuracy of classifiers on the features."""
    train, test = data.open_source(arguments.knn), data.open_source(arguments.data)
    if train.class_names != test.class_names:
        raise InputError(
            f"--knn={arguments.knn} has the classes {some(train.class_names)}, expected those of "
            f"{arguments.data}: {some(test.class_names)}"
        )
    result = probe(
        embed(train, progress=screen.counting("embedding the training examples")),
        embed(test, progress=screen.counting("embedding the examples")),
    )
    if arguments.json:
        names = {name: getattr(arguments, name) for name in ("weights", "data", "knn")}
        print(json.dumps(names | dataclasses.asdict(result)))
        return
    print(
        f"features of {arguments.weights} on {arguments.data}: {result.neighbours} nearest "
        f"neighbours {100 * result.knn_top1:.2f} %, linear probe {100 * result.linear_top1:.2f} %, "
        f"{result.train_examples:,} training examples, {result.examples:,} examples"
    )


def _apply_mask(model: VisionTransformer, arguments: argparse.Namespace) -> tuple[str, int]:
    """Mask the model, and return the mask as in `analysis.published`."""
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


def _open_examples(
    arguments: argparse.Namespace, weights: Weights
) -> tuple[data.Source, tuple[int, ...] | None]:
    """Return the examples, labelled with the model's classes, and the class subset or None."""

    def open_aligned(name: str) -> tuple[data.Source, tuple[int, ...] | None]:
        source = data.open_source(name)
        return data.align_classes(source, weights.class_names(), weights.num_classes())

    source, class_subset = open_aligned(arguments.data)
    if arguments.classes_of:
        class_subset = data.occurring_classes(open_aligned(arguments.classes_of)[0])
        source = data.restrict_to_classes(source, class_subset)
    elif analysis.tfds_name(arguments.data) in _PARTIAL_IMAGENETS:
        class_subset = data.occurring_classes(source)
    return source, class_subset


def _open_teacher(
    arguments: argparse.Namespace,
    weights: Weights,
    architecture: Architecture,
    preprocessing: Preprocessing,
) -> tuple[Predict, Any] | None:
    """Return the teacher's function and its parameters, or None if there is none."""
    if arguments.teacher is None:
        return None
    with naming("--teacher"):
        teacher = open_teacher(
            arguments.teacher, preprocessing, dtype=architecture.dtype, mesh=meshes.create_mesh()
        )
        teacher.check_classes(weights.num_classes(), weights.card.class_names)
    return teacher.predict, teacher.params


def _published_model(
    weights: Weights, architecture: Architecture, preprocessing: Preprocessing
) -> str | None:
    """Return the published model with the same shapes, classes and preprocessing, or None."""
    name = named_model(architecture)
    matches = (
        name is not None
        and imagenet.is_imagenet(weights.class_names() or ())
        and weights.native_image_size() == architecture.image_size == (224, 224)
        and analysis.is_published_preprocessing(name, preprocessing)
    )
    return name if matches else None


def _reference(
    arguments: argparse.Namespace, model: str, source: data.Source, mask: tuple[str, int]
) -> tuple[str, analysis.Published] | None:
    """Return the model and its published result on this data, or None."""
    dataset = analysis.known_dataset(arguments.data, source, arguments.classes_of)
    result = analysis.published(model, dataset, mask)
    return (model, result) if result else None


def _print_text(arguments: argparse.Namespace, evaluation: _Evaluation) -> None:
    measured = evaluation.measured
    print(
        f"{arguments.weights} on {arguments.data}: top-1 {100 * measured.top1:.2f} %, top-5 "
        f"{100 * measured.top5:.2f} %, loss {measured.loss:.4f}, {measured.examples:,} examples"
    )
    if measured.agreement is not None:
        print(f"the same prediction as {arguments.teacher}: {100 * measured.agreement:.2f} %")
    if evaluation.class_subset:
        num_classes = len(evaluation.source.class_names)
        print(f"restricted to {len(evaluation.class_subset):,} of the {num_classes:,} classes")
    ignored = len(evaluation.source) - measured.examples
    if ignored:
        print(f"{ignored:,} examples were unreadable or have no label")
    if evaluation.reference:
        model, published = evaluation.reference
        print(f"published for {model} ({published.source}): {_comparison(measured, published)}")
    if arguments.per_class:
        rows = []
        for row in measured.per_class(evaluation.source.class_names):
            accuracy = "" if row["accuracy"] is None else f"{100 * row['accuracy']:.1f} %"
            rows.append((row["name"], f"{row['examples']}", accuracy, row["mistaken_for"] or ""))
        headings = ("class", "examples", "top-1", "most often mistaken for")
        print_table(rows, headings, right=("examples", "top-1"))


def _comparison(measured: Accuracy, published: analysis.Published) -> str:
    """Return, for example, `top-1 73.12 % (here -0.02), top-5 91.71 % (here +0.01)`."""
    parts = [
        f"{name} {reference:.2f} % (here {100 * accuracy - reference:+.2f})"
        for name, reference, accuracy in (
            ("top-1", published.top1, measured.top1),
            ("top-5", published.top5, measured.top5),
        )
        if reference is not None
    ]
    if published.loss is not None:
        parts.append(f"loss {published.loss:.3f} (here {measured.loss - published.loss:+.3f})")
    return ", ".join(parts)


def _print_json(arguments: argparse.Namespace, evaluation: _Evaluation) -> None:
    measured, class_names = evaluation.measured, evaluation.source.class_names
    record: dict[str, Any] = {
        "weights": arguments.weights,
        "data": arguments.data,
        "classes": len(evaluation.class_subset or class_names),
        **{mask: getattr(arguments, mask) for mask in _MASKS if getattr(arguments, mask)},
        **{name: getattr(measured, name) for name in ("examples", "top1", "top5", "loss")},
    }
    if measured.agreement is not None:
        record |= {"teacher": arguments.teacher, "agreement": measured.agreement}
    if evaluation.reference:
        model, published = evaluation.reference
        record["published"] = {"model": model, **dataclasses.asdict(published)}
    if arguments.per_class:
        record["per_class"] = measured.per_class(class_names)
    print(json.dumps(record))


def _main_of_process() -> int:
    """Join the other processes, if any, and run the command."""
    join_processes()
    return main()


if __name__ == "__main__":
    sys.exit(command_line.run("evaluate", _main_of_process))
