"""Classify images:

    python -m convit_jax.predict --weights convit_tiny.safetensors cat.jpg dog.png
    python -m convit_jax.predict --weights runs/mine --top 3 IMAGES/ "more/*.jpg" --json

IMAGE is a file, a folder (all images below it) or a pattern such as "*.jpg". If an image cannot be
read, it is reported on standard error, the others are classified, and the exit code is 1.
"""

from convit_jax.system.huge_pages import restart_with_huge_pages

if __name__ == "__main__":
    restart_with_huge_pages()

import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convit_jax.console import command_line
from convit_jax.console.screen import Screen
from convit_jax.data.images.preprocessing import Preprocessing
from convit_jax.data.sources import imagenet
from convit_jax.data.sources.image_paths import find_images
from convit_jax.errors import InputError, fitting_memory
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

    def readable_images() -> Iterator[tuple[str, np.ndarray]]:
        for path in paths:
            try:
                yield path, preprocessing.crop(path)
            except InputError as error:
                broken.append(path)
                command_line.print_message("predict", str(error))

    batch_size = min(arguments.batch_size, len(paths))
    for path, probabilities in classify(model, preprocessing, readable_images(), batch_size):
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


def classify(
    model: VisionTransformer,
    preprocessing: Preprocessing,
    images: Iterable[tuple[str, np.ndarray]],
    batch_size: int,
) -> Iterator[tuple[str, np.ndarray]]:
    """Classify images batch by batch.

    Args:
        model: any vision transformer.
        preprocessing: normalises the images.
        images: (path, uint8 image) of each image.
        batch_size: number of images per batch.

    Yields:
        (path, probabilities [num_classes]) of each image.
    """
    graph, state = nnx.split(model)
    run = jax.jit(lambda state, images: jax.nn.softmax(nnx.merge(graph, state)(images)))
    height, width = preprocessing.image_size
    images = iter(images)
    while batch := list(itertools.islice(images, batch_size)):
        pixels = np.stack([image for _, image in batch])
        # All batches have the same shape, to compile once.
        padded = np.resize(pixels, (batch_size, *pixels.shape[1:]))
        with fitting_memory(f"--batch-size={batch_size}, images of {height}x{width} pixels"):
            probabilities = np.asarray(run(state, jnp.asarray(preprocessing.normalise(padded))))
        yield from zip((path for path, _ in batch), probabilities, strict=False)


def _print_text(path: str, predictions: list[dict[str, Any]]) -> None:
    print(path)
    for p in predictions:
        print(f"  {100 * p['probability']:6.2f} %  {p['name']}")


def _print_json(path: str, predictions: list[dict[str, Any]]) -> None:
    print(json.dumps({"image": path, "predictions": predictions}), flush=True)


if __name__ == "__main__":
    sys.exit(command_line.run("predict", main))
