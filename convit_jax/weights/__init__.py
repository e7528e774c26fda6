"""Weights from and for elsewhere: names, files and what to say when they do not fit."""

from convit_jax.weights.files import read_safetensors
from convit_jax.weights.torch_names import from_torch, load_tensors, to_torch

__all__ = ["from_torch", "load_tensors", "read_safetensors", "to_torch"]
