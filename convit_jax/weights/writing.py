"""Writing weights as .safetensors and PyTorch files, and as checkpoints."""

import dataclasses
import importlib.util
import io
import json
from collections.abc import Mapping

import numpy as np
import safetensors.numpy
from etils import epath

from convit_jax.errors import InputError, boundary, nearest
from convit_jax.models import Architecture
from convit_jax.system.paths import path_to_write
from convit_jax.system.whole_file import write_whole
from convit_jax.weights.card import Card
from convit_jax.weights.files import TORCH_SUFFIXES
from convit_jax.weights.loading import METADATA_KEY, Weights
from convit_jax.weights.model_checkpoints import write_checkpoint
from convit_jax.weights.torch_names import from_torch

SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
# Programs that run without this package; `exporting` and `onnx_export` make them.
PROGRAMS = (".stablehlo", ".onnx")


def write_weights(weights: Weights, path: epath.Path, architecture: Architecture) -> None:
    """Write weights in the format of the path's suffix; without one, as a checkpoint directory.

    .safetensors and PyTorch files have the names and layout of the released weights, so timm's
    models load them with strict=True. .safetensors files and checkpoints include the card.

    Args:
        weights: to write.
        path: from `new_path`.
        architecture: of the weights, or with another image size, to whose grid the absolute
            positions are resampled.

    Raises:
        InputError: the weights do not fit the architecture, the path cannot be written to, or
            PyTorch is needed and not installed.
    """
    if path.suffix == ".safetensors":
        write_whole(path, safetensors_bytes(weights, architecture))
        return
    tensors = fitting_tensors(weights, architecture)
    if path.suffix in TORCH_SUFFIXES:
        if architecture.positional_attention == "vanilla":
            raise InputError(
                f"{path}: PyTorch's ConViT has no vanilla positional attention, and a file without "
                "a card would be taken for one with fixed gates: expected .safetensors, or no "
                "suffix for a checkpoint"
            )
        _write_torch(path, tensors)
    else:
        params = from_torch(tensors, architecture)
        write_checkpoint(path, params, _card(weights, architecture))


def safetensors_bytes(weights: Weights, architecture: Architecture) -> bytes:
    """Return the content of a .safetensors file with the weights and their card.

    Raises:
        InputError: the weights do not fit the architecture.
    """
    tensors = fitting_tensors(weights, architecture)
    card = json.dumps(_card(weights, architecture).as_json())
    return safetensors.numpy.save(tensors, metadata={"format": "pt", METADATA_KEY: card})


def _card(weights: Weights, architecture: Architecture) -> Card:
    return dataclasses.replace(weights.card, architecture=architecture)


def fitting_tensors(weights: Weights, architecture: Architecture) -> dict[str, np.ndarray]:
    """Return the tensors of an architecture, as they are written.

    Raises:
        InputError: the weights do not fit the architecture.
    """
    tensors = {
        # The libraries write an array's memory unchanged, so it must be contiguous and
        # little-endian, as in the files.
        name: np.asarray(array, "<f4", order="C")
        for name, array in weights.tensors_for(architecture).items()
    }
    with weights.naming_errors():
        from_torch(tensors, architecture)  # raises if they do not fit the model
    return tensors


def new_path(destination: str) -> epath.Path:
    """Return the path to write to, with a supported suffix or none.

    Raises:
        InputError: the suffix is not supported, or the path exists.
    """
    path = path_to_write(destination)
    if "://" not in destination:
        path = path.resolve()
    suffixes = (*SUFFIXES, *PROGRAMS)
    if path.suffix and path.suffix not in suffixes and not destination.endswith("/"):
        raise InputError(
            f"{destination}: cannot write '{path.suffix}' files, {nearest(path.suffix, suffixes)}. "
            "Without a suffix, a checkpoint directory is written"
        )
    with boundary(destination):
        exists = path.exists()
    if exists:
        raise InputError(f"{destination} already exists: choose another name, or remove it first")
    return path


def _write_torch(path: epath.Path, tensors: Mapping[str, np.ndarray]) -> None:
    if importlib.util.find_spec("torch") is None:
        raise InputError(
            f"{path} needs PyTorch: pip install torch, or write .safetensors, which PyTorch reads "
            "as well"
        )
    # Imported here because it is optional.
    import torch  # noqa: PLC0415

    content = {name: torch.from_numpy(array.copy()) for name, array in tensors.items()}
    # Written through memory: PyTorch names an archive's entries after the file, which here is a
    # temporary file whose name contains the machine's name.
    archive = io.BytesIO()
    torch.save(content, archive)
    write_whole(path, archive.getbuffer())
