"""Weights from and for elsewhere: names, files and what to say when they do not fit."""

from convit_jax.weights.card import Card
from convit_jax.weights.files import read_tensors
from convit_jax.weights.loading import Weights, load_model, model_of, open_weights
from convit_jax.weights.recognition import (
    model_keys,
    named_model,
    nearest_model,
    recognise,
    told_by_shapes,
)
from convit_jax.weights.torch_names import from_torch, load_tensors, to_torch
from convit_jax.weights.writing import new_path, write_weights

__all__ = [
    "Card",
    "Weights",
    "from_torch",
    "load_model",
    "load_tensors",
    "model_keys",
    "model_of",
    "named_model",
    "nearest_model",
    "new_path",
    "open_weights",
    "read_tensors",
    "recognise",
    "to_torch",
    "told_by_shapes",
    "write_weights",
]
