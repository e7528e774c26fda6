"""Convert weights between formats:

    python -m convit_jax.convert convit_tiny.pth convit_tiny.safetensors
    python -m convit_jax.convert runs/mine mine.pth           # to PyTorch: timm's names and layout
    python -m convit_jax.convert convit_tiny.pth runs/tiny    # to a checkpoint directory
    python -m convit_jax.convert runs/mine mine.stablehlo     # a program from images to classes
    python -m convit_jax.convert runs/mine mine.stablehlo --logits    # from normalised images
    python -m convit_jax.convert runs/mine mine.onnx          # the same for ONNX Runtime
    python -m convit_jax.convert runs/mine hf://ORG/NAME      # uploads it to the Hugging Face Hub

SRC is anything that convit_jax.load_model takes. The format is given by DST's suffix: .safetensors,
or with PyTorch installed .pth, .pt or .bin, all with the released names and layout; .stablehlo, a
jax.export artefact that includes weights and preprocessing, for CPU, TPU and CUDA; .onnx, the same
for ONNX Runtime and others (pip install onnx); no suffix, a checkpoint. Tensors are copied bit for
bit. DST must not exist yet.

To hf://ORG/NAME, weights, a model card and a config.json that timm reads are uploaded in one commit
(pip install huggingface_hub; then `hf auth login`, or HF_TOKEN). --dry-run DIR writes them to a
directory instead.
"""

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from typing import Any

from convit_jax.console import command_line
from convit_jax.console.screen import Screen
from convit_jax.errors import InputError
from convit_jax.models import Architecture
from convit_jax.system.devices import find_devices
from convit_jax.system.whole_file import write_whole
from convit_jax.weights import (
    Weights,
    fields_from_shapes,
    new_path,
    open_weights,
    uploading,
    write_weights,
)
from convit_jax.weights.exporting import export_classifier, export_logits
from convit_jax.weights.files import TORCH_SUFFIXES
from convit_jax.weights.writing import fitting_tensors


def _parser() -> command_line.Parser:
    parser = command_line.Parser(prog="python -m convit_jax.convert", description=__doc__)
    parser.add_argument("source", metavar="SRC", help="anything that convit_jax.load_model takes")
    parser.add_argument("destination", metavar="DST", help="output; its suffix gives the format")
    command_line.add_override_flag(parser)
    parser.add_argument(
        "--dry-run", metavar="DIR", help="for hf://: write the files to DIR instead"
    )
    parser.add_argument(
        "--replace", action="store_true", help="for hf://: replace weights that the repository has"
    )
    text = (
        "for .stablehlo: a program from normalised images of the model's size to logits, which can "
    )
    text += "be config.distill.teacher"
    parser.add_argument("--logits", action="store_true", help=text)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    arguments = _parser().parse_args(argv)
    overrides = command_line.overrides(arguments.override)
    if arguments.logits and not arguments.destination.endswith(".stablehlo"):
        raise InputError(f"--logits: expected a DST.stablehlo, not {arguments.destination}")
    if arguments.destination.startswith(uploading.PREFIX):
        return _to_hub(arguments, overrides)
    if arguments.dry_run is not None or arguments.replace:
        flag = "--replace" if arguments.dry_run is None else "--dry-run"
        raise InputError(f"{flag}: expected a DST hf://ORG/NAME, not {arguments.destination}")
    with Screen():
        path = new_path(arguments.destination)
        if path.suffix == ".onnx" and importlib.util.find_spec("onnx") is None:
            raise InputError(f"{arguments.destination} needs another package: pip install onnx")
        weights = open_weights(arguments.source)
        architecture = weights.architecture(**overrides)
        if path.suffix == ".stablehlo":
            find_devices()
            model = weights.model(**overrides)
            if arguments.logits:
                program = export_logits(model)
            else:
                program = export_classifier(model, weights.preprocessing(architecture))
            write_whole(path, program)
        elif path.suffix == ".onnx":
            write_whole(path, _as_onnx(weights, architecture))
        else:
            write_weights(weights, path, architecture)
    record = _record(arguments.destination, path.suffix, weights, architecture)
    print(json.dumps(record) if arguments.json else _as_text(record))
    return 0


def _as_onnx(weights: Weights, architecture: Architecture) -> bytes:
    """Return the content of an .onnx file."""
    from convit_jax.weights.onnx_export import export_onnx  # noqa: PLC0415  (an optional extra)

    tensors = fitting_tensors(weights, architecture)
    preprocessing = weights.preprocessing(architecture)
    return export_onnx(tensors, architecture, preprocessing, weights.class_names())


def _to_hub(arguments: argparse.Namespace, overrides: dict[str, Any]) -> int:
    """Upload the source to a repository, or write the repository's files to a directory."""
    destination = arguments.destination
    with Screen():
        if arguments.dry_run is None:
            uploading.check_can_upload(destination)
        else:
            uploading.repository_of(destination)
            command_line.expect(arguments, "dry_run", bool(arguments.dry_run), "a directory")
            directory = new_path(f"{arguments.dry_run.rstrip('/')}/")
        weights = open_weights(arguments.source)
        architecture = weights.architecture(**overrides)
        files = uploading.repository_files(destination, weights, architecture)
        if arguments.dry_run is None:
            address = uploading.upload(destination, files, replace=arguments.replace)
        else:
            address = str(directory)
            for name, content in files.items():
                write_whole(directory / name, content)
    record = _record(destination, ".safetensors", weights, architecture) | {"address": address}
    verb = "uploaded to" if arguments.dry_run is None else "not uploaded; its files are in"
    print(json.dumps(record) if arguments.json else f"{_as_text(record)}; {verb} {address}")
    return 0


def _record(
    destination: str, suffix: str, weights: Weights, architecture: Architecture
) -> dict[str, Any]:
    """Return a record of the written file."""
    return {
        "destination": destination,
        "model": weights.likely_model(),
        "parameters": sum(int(array.size) for array in weights.tensors.values()),
        "classes": architecture.num_classes,
        "image_size": list(architecture.image_size),
        "left_behind": _lost_fields(weights, architecture) if suffix in TORCH_SUFFIXES else [],
    }


def _lost_fields(weights: Weights, architecture: Architecture) -> list[str]:
    """Return what was known about the weights but cannot be inferred from the tensors of a .pth."""
    card = weights.card
    lost = []
    if card.class_names is not None:
        lost.append("class names")
    if card.mean is not None or card.crop_fraction is not None:
        lost.append("preprocessing")
    inferred = fields_from_shapes(weights.tensors_for(architecture))
    for field in ("num_heads", "image_size"):
        value = getattr(architecture, field)
        if field not in inferred or inferred[field] != value:
            lost.append(f"{field}={value}")
    return lost


def _as_text(record: dict[str, Any]) -> str:
    height, width = record["image_size"]
    text = (
        f"{record['destination']}: {record['model'] or 'a model'}, {record['parameters']:,} "
        f"parameters, {record['classes']:,} classes, images of {height}x{width}"
    )
    if record["left_behind"]:
        text += (
            f"; not saved, as the format has no place for it: {', '.join(record['left_behind'])}"
        )
    return text


if __name__ == "__main__":
    sys.exit(command_line.run("convert", main))
