"""Weights by any name → a model."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from convit_jax import models
from convit_jax.errors import InputError
from convit_jax.models import Architecture, VisionTransformer
from convit_jax.weights.files import read_tensors
from convit_jax.weights.recognition import nearest_model, recognise
from convit_jax.weights.torch_names import load_tensors


def load_model(weights: str | pathlib.Path, **overrides: Any) -> VisionTransformer:
    """A model with the weights of a file.

    Args:
        weights: a .safetensors file, or with PyTorch installed a .pth, .pt or .bin file, of the
            released models, of timm's, or a training checkpoint of the released code.
        **overrides: fields of `Architecture`, where the tensors do not tell them or something
            else is wanted: `dtype="bfloat16"`, `num_heads`, `image_size` (of a grid that is not
            square).

    Returns:
        The model, in float32 unless `dtype` says otherwise.

    Raises:
        InputError: the file is not there or is damaged, or its tensors are not such a model's.
    """
    tensors = read_tensors(weights)
    try:
        return model_of(tensors, recognise(tensors, **overrides))
    except InputError as error:
        likely = nearest_model(tensors)
        hint = f"; these look like the weights of {likely}" if likely else ""
        raise InputError(f"{weights}: {error}{hint}") from error


def model_of(tensors: Mapping[str, np.ndarray], architecture: Architecture) -> VisionTransformer:
    """A model of the given architecture with tensors of the released layout.

    Raises:
        InputError: they do not fit; every misfit is listed.
    """
    # Made as shapes only: every parameter is about to be replaced.
    model = nnx.eval_shape(lambda: models.build(architecture))
    load_tensors(model, tensors)
    return model
