"""scripts/check_port.sh, on weights and images that stand in for the published ones."""

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from convit_jax import evaluate, models
from convit_jax.analysis.published import GATES, NUM_IMAGES, published
from convit_jax.data.sources import imagenet
from convit_jax.errors import InputError
from convit_jax.weights import Card, Weights, new_path, write_weights
from tests.helpers import load_module, random_parameters, write_random_weights
from convit_jax.weights import to_torch


@pytest.fixture(scope="module")
def script(repository):
    return load_module(repository / "scripts" / "check_port.py")


def write_stand_in(name, path, **changes):
    """Write weights with the gates that the paper prints for a model, otherwise zero.

    Args:
        name: of the model.
        path: of the file.
        changes: the gates of some layers, `layer_2=(…)`, instead of the printed ones.
    """
    architecture = models.architecture(name)
    shapes = random_parameters(architecture, scale=0.0)
    tensors = dict(to_torch(shapes, architecture))
    for layer, printed in GATES[name].items():
        gates = np.clip(changes.get(f"layer_{layer}", printed), 1e-4, None)
        tensors[f"blocks.{layer - 1}.attn.gating_param"] = np.log(gates / (1 - gates)).astype("f4")
    write_weights(Weights(name, tensors, Card()), new_path(str(path)), architecture)
