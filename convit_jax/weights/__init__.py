"""Loading, recognising and writing weights, in this package's and other libraries' formats."""

from convit_jax.weights.card import Card
from convit_jax.weights.creating import create_model, initial_model
from convit_jax.weights.files import read_tensors
from convit_jax.weights.loading import Weights, load_model, model_from_tensors, open_weights
from convit_jax.weights.recognition import (
    fields_from_shapes,
    model_keys,
    named_model,
    nearest_model,
    recognise,
)
from convit_jax.weights.torch_names import from_torch, load_tensors, to_torch
from convit_jax.weights.writing import new_path, write_weights
