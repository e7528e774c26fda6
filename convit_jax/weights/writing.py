"""Weights → files of other programs, and our own checkpoints."""

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
from convit_jax.weights.files import TORCH_SUFFIXES
from convit_jax.weights.loading import METADATA_KEY, Weights
from convit_jax.weights.model_checkpoints import write_checkpoint
from convit_jax.weights.torch_names import from_torch

SUFFIXES = (".safetensors", *TORCH_SUFFIXES)


def write_weights(weights: Weights, path: epath.Path, architecture: Architecture) -> None:
    """Writes weights as the path's suffix says; without one, as a checkpoint directory.

    `.safetensors` and PyTorch's suffixes get the released names and layout, which timm's models
    load strictly; .safetensors and checkpoints also the card.

    Args:
        weights: what to write.
        path: from `new_path`.
        architecture: the weights', or of another image size, to whose grid absolute positions are
            resampled.

    Raises:
        InputError: the weights do not fit the architecture, the path cannot be written to, or
            PyTorch is needed and not installed.
    """
    tensors = {
        # As files have it: one number after the other, little-endian. The libraries that write
        # take an array's memory as it lies.
        name: np.asarray(array, "<f4", order="C")
        for name, array in weights.tensors_for(architecture).items()
    }
    with weights.named():
        params = from_torch(tensors, architecture)  # what does not fit a model is not written
    card = dataclasses.replace(weights.card, architecture=architecture)
    if path.suffix == ".safetensors":
        said = json.dumps(card.as_json())
        content = safetensors.numpy.save(tensors, metadata={"format": "pt", METADATA_KEY: said})
        write_whole(path, lambda file: file.write_bytes(content))
    elif path.suffix in TORCH_SUFFIXES:
        _write_torch(path, tensors)
    else:
        write_checkpoint(path, params, card)


def new_path(destination: str) -> epath.Path:
    """The path to write to, with a suffix that is known, or none.

    Raises:
        InputError: the suffix is unknown or the path is taken.
    """
    path = path_to_write(destination)
    if "://" not in destination:
        path = path.resolve()
    known = (*SUFFIXES, ".stablehlo")
    if path.suffix and path.suffix not in known and not destination.endswith("/"):
        raise InputError(
            f"{destination}: nothing is written as '{path.suffix}', {nearest(path.suffix, known)}. "
            "Without a suffix it is a checkpoint directory"
        )
    with boundary(destination):
        is_there = path.exists()
    if is_there:
        raise InputError(f"{destination} is there already: name another, or remove it first")
    return path


def _write_torch(path: epath.Path, tensors: Mapping[str, np.ndarray]) -> None:
    if importlib.util.find_spec("torch") is None:
        raise InputError(
            f"{path} takes PyTorch to write: pip install torch, or write .safetensors, which "
            "PyTorch reads as well"
        )
    # Imported here: an optional extra.
    import torch  # noqa: PLC0415

    content = {name: torch.from_numpy(array.copy()) for name, array in tensors.items()}
    # By way of memory: an archive's entries are named after the file that PyTorch writes, which is
    # a draft with this machine's name.
    archive = io.BytesIO()
    torch.save(content, archive)
    write_whole(path, lambda file: file.write_bytes(archive.getbuffer()))
