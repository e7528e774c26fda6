"""Weights from and for elsewhere: names, files and what to say when they do not fit."""

from convit_jax.weights.files import read_safetensors, read_tensors
from convit_jax.weights.loading import load_model, model_of
from convit_jax.weights.recognition import nearest_model, recognise
from convit_jax.weights.torch_names import from_torch, load_tensors, to_torch

__all__ = [
    "from_torch",
    "load_model",
    "load_tensors",
    "model_of",
    "nearest_model",
    "read_safetensors",
    "read_tensors",
    "recognise",
    "to_torch",
]
