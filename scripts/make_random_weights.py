"""Make full-size weights of a published model with random values, to test without a download.

    python scripts/make_random_weights.py convit_tiny /tmp/convit_tiny.safetensors
    python scripts/make_random_weights.py convit_tiny /tmp/convit_tiny.pth    # with PyTorch

Names, shapes and order are those of the released file; the values are those of a fresh model plus
noise, so that no tensor is constant.
"""

import argparse
from typing import Any

import jax
import numpy as np
from flax import nnx

from convit_jax import models
from convit_jax.weights import Card, Weights, new_path, to_torch, write_weights


def random_weights(name: str, seed: int) -> Weights:
    """Return the named model's weights, a deterministic function of the seed."""
    architecture = models.architecture(name)

    @jax.jit
    def init_params() -> dict[Any, Any]:
        return nnx.to_pure_dict(nnx.state(models.build(architecture, seed), nnx.Param))

    leaves = jax.tree_util.tree_leaves_with_path(init_params())
    rng = np.random.default_rng(seed)
    params = {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf)
        + rng.normal(0.0, 0.02, leaf.shape).astype(np.float32)
        for path, leaf in leaves
    }
    return Weights(name, to_torch(params, architecture), Card())


def main() -> None:
    """Write the file named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", choices=models.model_names())
    parser.add_argument("destination")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    weights = random_weights(arguments.model, arguments.seed)
    path = new_path(arguments.destination)
    write_weights(weights, path, models.architecture(arguments.model))
    print(f"{path}: {len(weights.tensors)} tensors")


if __name__ == "__main__":
    main()
