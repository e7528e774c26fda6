"""Functions and marks that the tests of several packages share."""

import functools
import importlib.util
import json
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from convit_jax.models import create_model
from convit_jax.weights import Card, Weights, new_path, to_torch, write_weights
from convit_jax.weights.torch_names import parameter_shapes

torch_only = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="PyTorch is not installed: .pth files are an optional extra",
)
compiler_only = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed"
)
# For processes that use it: without what conftest.py sets for other tests. It does not know XLA's
# flags for CPUs.
COMPILER_ENVIRONMENT = {"JAX_DISABLE_MOST_OPTIMIZATIONS": None, "XLA_FLAGS": None}


def load_module(path):
    """Import a Python file outside of any package: a script or a config."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # needed by its dataclasses
    spec.loader.exec_module(module)
    return module


def read_metrics(workdir):
    """Return the lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def parameters_by_name(model):
    """Return a model's parameters by our names, such as blocks.0.norm1.scale."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {".".join(map(str, path)): variable[...] for path, variable in flat}


@functools.cache
def abstract_parameters(name, **overrides):
    """Return the tree of the shapes of a model's parameters."""
    model = nnx.eval_shape(lambda: create_model(name, **overrides))
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def random_parameters(architecture, seed=0, scale=1.0):
    """Return normal random parameters of an architecture, by our names."""
    rng = np.random.default_rng(seed)
    shapes = parameter_shapes(architecture).items()
    return {name: rng.normal(0, scale, shape).astype(np.float32) for name, shape in shapes}


def write_random_weights(architecture, path):
    """Write random weights of an architecture to a file, and return its path."""
    tensors = to_torch(random_parameters(architecture, scale=0.3), architecture)
    write_weights(Weights("random", tensors, Card()), new_path(str(path)), architecture)
    return str(path)


def assert_same_batches(actual, expected):
    """Check that two lists of batches, dictionaries of arrays, are equal."""
    assert len(actual) == len(expected)
    for batch, expected_batch in zip(actual, expected, strict=True):
        assert batch.keys() == expected_batch.keys()
        assert all(np.array_equal(batch[name], expected_batch[name]) for name in batch)


def assert_trees_close(actual, expected, **tolerances):
    """Check that two trees of arrays are equal within the tolerances of `assert_allclose`."""
    for array, reference in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(array, reference, **tolerances)
