"""Loading, recognising and writing weights, in this package's and other libraries' formats."""

from convit_jax.weights.card import Card as Card
from convit_jax.weights.files import read_tensors as read_tensors
from convit_jax.weights.loading import Weights as Weights
from convit_jax.weights.loading import load_model as load_model
from convit_jax.weights.loading import model_from_tensors as model_from_tensors
from convit_jax.weights.loading import open_weights as open_weights
from convit_jax.weights.recognition import fields_from_shapes as fields_from_shapes
from convit_jax.weights.recognition import model_keys as model_keys
from convit_jax.weights.recognition import named_model as named_model
from convit_jax.weights.recognition import nearest_model as nearest_model
from convit_jax.weights.recognition import recognise as recognise
from convit_jax.weights.torch_names import from_torch as from_torch
from convit_jax.weights.torch_names import load_tensors as load_tensors
from convit_jax.weights.torch_names import to_torch as to_torch
from convit_jax.weights.writing import new_path as new_path
from convit_jax.weights.writing import write_weights as write_weights
