"""Classify images:

    python -m convit_jax.predict --weights convit_tiny.safetensors cat.jpg dog.png
    python -m convit_jax.predict --weights runs/mine --top 3 IMAGES/ "more/*.jpg" --json

IMAGE is a file, a folder (all images below it) or a pattern such as "*.jpg". If an image cannot be
read, it is reported on standard error, the others are classified, and the exit code is 1.
"""

from convit_jax.system.huge_pages import restart_with_huge_pages

if __name__ == "__main__":
    restart_with_huge_pages()

import json
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from convit_jax.console import command_line
from convit_jax.console.screen import Screen
from convit_jax.data.sources import imagenet
from convit_jax.data.sources.image_paths import find_images
from convit_jax.evaluation.image_files import apply_to_images, read_images
from convit_jax.models import VisionTransformer
from convit_jax.system.cache import keep_compiled_programs
from convit_jax.weights import open_weights


def _parser() -> command_line.Parser:
    parser = command_line.Parser(prog="python -m convit_jax.predict", description=__doc__)
    command_line.add_weights_flags(parser)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="file, folder or pattern")
    parser.add_option("--top", 5, "number of classes to print")
    parser.add_option("--batch-size", 16, "images per step")
    parser.add_argument("--json", action="store_true", help="print one JSON object per image")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 1 if an image could not be read."""
    arguments = _parser().parse_args(argv)
    for name in ("top", "batch_size"):
        command_line.expect(arguments, name, getattr(arguments, name) >= 1, "at least 1")
    overrides = command_line.overrides(arguments.override)
    keep_compiled_programs()
    with Screen():
        paths = find_images(arguments.images)
        weights = open_weights(arguments.weights)
        model = weights.model(**overrides)
        preprocessing = weights.preprocessing(model.architecture)
    classes = weights.class_names() or tuple(map(str, range(weights.num_classes())))
    names = imagenet.readable_names(classes)
    show = _print_json if arguments.json else _print_text
    broken: list[str] = []

    def report(path: str, problem: str) -> None:
        broken.append(path)
        command_line.print_message("predict", problem)

    batch_size = min(arguments.batch_size, len(paths))
    images = read_images(paths, preprocessing, report)
    results = apply_to_images(_probabilities, model, preprocessing, images, batch_size)
    for path, probabilities in results:
        predictions = [
            {
                "class": classes[label],
                "name": names[label],
                "label": int(label),
                "probability": float(probabilities[label]),
            }
            for label in np.argsort(-probabilities, kind="stable")[: arguments.top]
        ]
        show(path, predictions)
    return 1 if broken else 0


def _probabilities(model: VisionTransformer, images: jax.Array) -> jax.Array:
    return jax.nn.softmax(model(images))


def _print_text(path: str, predictions: list[dict[str, Any]]) -> None:
    print(path)
    for p in predictions:
        print(f"  {100 * p['probability']:6.2f} %  {p['name']}")


def _print_json(path: str, predictions: list[dict[str, Any]]) -> None:
    print(json.dumps({"image": path, "predictions": predictions}), flush=True)


if __name__ == "__main__":
    sys.exit(command_line.run("predict", main))
