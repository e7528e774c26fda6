"""Turns weights of one kind into another:

    python -m convit_jax.convert convit_tiny.pth convit_tiny.safetensors
    python -m convit_jax.convert runs/mine mine.pth           # to PyTorch: timm's names and layout
    python -m convit_jax.convert convit_tiny.pth runs/tiny    # to a checkpoint directory
    python -m convit_jax.convert runs/mine mine.stablehlo     # a program: images in, classes out

SRC is anything that convit_jax.load_model takes. DST's suffix says what it becomes: .safetensors,
or with PyTorch installed .pth, .pt or .bin, all with the released names and layout; .stablehlo, a
jax.export artefact with the weights and the preprocessing inside, for CPU, TPU and CUDA; without a
suffix, a checkpoint. Tensors are copied bit for bit. DST must not be there yet.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

from convit_jax.console import command_line
from convit_jax.console.screen import Screen
from convit_jax.models import Architecture
from convit_jax.system.devices import find_devices
from convit_jax.system.whole_file import write_whole
from convit_jax.weights import Weights, fields_from_shapes, new_path, open_weights, write_weights
from convit_jax.weights.exporting import export_classifier
from convit_jax.weights.files import TORCH_SUFFIXES


def _parser() -> command_line.Parser:
    parser = command_line.Parser(prog="python -m convit_jax.convert", description=__doc__)
    parser.add_argument("source", metavar="SRC", help="anything that convit_jax.load_model takes")
    parser.add_argument("destination", metavar="DST", help="where to; its suffix says what it is")
    command_line.add_override_flag(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Converts as the arguments say and prints what was written."""
    arguments = _parser().parse_args(argv)
    fields = command_line.overrides(arguments.override)
    with Screen():
        path = new_path(arguments.destination)
        weights = open_weights(arguments.source)
        architecture = weights.architecture(**fields)
        if path.suffix == ".stablehlo":
            find_devices()
            program = export_classifier(
                weights.model(**fields), weights.preprocessing(architecture)
            )
            write_whole(path, lambda file: file.write_bytes(program))
        else:
            write_weights(weights, path, architecture)
    record = _record(arguments.destination, path.suffix, weights, architecture)
    print(json.dumps(record) if arguments.json else _in_words(record))
    return 0


def _record(
    destination: str, suffix: str, weights: Weights, architecture: Architecture
) -> dict[str, Any]:
    """What was written."""
    return {
        "destination": destination,
        "model": weights.likely_model(),
        "parameters": sum(int(array.size) for array in weights.tensors.values()),
        "classes": architecture.num_classes,
        "image_size": list(architecture.image_size),
        "left_behind": _left_behind(weights, architecture) if suffix in TORCH_SUFFIXES else [],
    }


def _left_behind(weights: Weights, architecture: Architecture) -> list[str]:
    """What was known of the weights that tensors alone, which are all of a .pth, do not tell."""
    card = weights.card
    known = {
        "class names": card.class_names is not None,
        "preprocessing": card.mean is not None or card.crop_fraction is not None,
    }
    told = fields_from_shapes(weights.tensors_for(architecture))
    for field in ("num_heads", "image_size"):
        value = getattr(architecture, field)
        known[f"{field}={value}"] = told.get(field, value) != value or field not in told
    return [what for what, is_known in known.items() if is_known]


def _in_words(record: dict[str, Any]) -> str:
    height, width = record["image_size"]
    words = (
        f"{record['destination']}: {record['model'] or 'a model'}, {record['parameters']:,} "
        f"parameters, {record['classes']:,} classes, images of {height}x{width}"
    )
    if record["left_behind"]:
        words += f"; left behind, for it has no place for them: {', '.join(record['left_behind'])}"
    return words


if __name__ == "__main__":
    sys.exit(command_line.run("convert", main))
