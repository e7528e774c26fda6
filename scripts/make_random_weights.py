"""Makes full-size weights of a published model, with random values, to try things without them.

    python scripts/make_random_weights.py convit_tiny /tmp/convit_tiny.safetensors
    python scripts/make_random_weights.py convit_tiny /tmp/convit_tiny.pth    # with PyTorch

Names, shapes and order are the released file's; the values are those of a fresh model with noise
on all of them, so that no tensor is all zeros or ones.
"""

import argparse

import jax
import numpy as np
from flax import nnx

from convit_jax import models
from convit_jax.weights import Card, Weights, new_path, to_torch, write_weights


def random_weights(name: str, seed: int) -> Weights:
    """The named model's weights, a function of the seed."""
    made = models.architecture(name)
    build = jax.jit(lambda: nnx.to_pure_dict(nnx.state(models.build(made, seed), nnx.Param)))
    leaves = jax.tree_util.tree_leaves_with_path(build())
    rng = np.random.default_rng(seed)
    params = {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf)
        + rng.normal(0.0, 0.02, leaf.shape).astype(np.float32)
        for path, leaf in leaves
    }
    return Weights(name, to_torch(params, made), Card())


def main() -> None:
    """Writes the file that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", choices=models.list_models())
    parser.add_argument("destination")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    weights = random_weights(arguments.model, arguments.seed)
    path = new_path(arguments.destination)
    write_weights(weights, path, models.architecture(arguments.model))
    print(f"{path}: {len(weights.tensors)} tensors")


if __name__ == "__main__":
    main()
