"""Thirty steps of a tiny ConViT, against the same thirty taken by torch's AdamW in float64.

`tests/data/thirty_steps.npz` holds the reference: parameters before and after, their running
average and every loss. All twenty images are in each step, so that nothing is random; what is
compared is the whole step: normalisation, smoothing, gradients, AdamW with its decay mask, the
learning rate's cosine and the running average.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convit_jax import models
from convit_jax.config import resolve
from convit_jax.training import make_experiment
from convit_jax.training.step import TrainState
from convit_jax.weights import load_tensors, to_torch

STEPS = 30
RECIPE = {
    "train_for": f"{STEPS} steps",
    "batch_size": 20,
    "label_smoothing": 0.1,
    "ema_decay": 0.9,
    "model": {
        "name": "convit_tiny", "num_heads": 4, "head_dim": 4, "depth": 3, "gpsa_layers": 2,
        "patch_size": 7, "in_channels": 1,
    },
    "data": {"image_size": (28,), "mean": (0.5,), "std": (0.25,)},
    "optimizer": {
        "learning_rate": 1e-3, "learning_rate_batch": 20, "min_learning_rate": 1e-5,
        "warmup": "0 steps", "weight_decay": 0.1,
    },
}  # fmt: skip


def of_prefix(arrays, prefix):
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


@pytest.fixture(scope="module")
def reference(reference_data):
    with np.load(reference_data / "thirty_steps.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def trained(reference):
    """Our losses, parameters and their average after the steps, by the released names."""
    experiment = make_experiment(resolve(RECIPE), num_examples=20, num_classes=5)
    model = models.build(experiment.architecture)
    load_tensors(model, of_prefix(reference, "init/"))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    fresh = jax.jit(experiment.init_state)()
    state = TrainState(fresh.step, params, fresh.opt_state, jax.tree.map(jnp.copy, params))
    batch = {"image": reference["images"], "label": reference["labels"]}
    step, losses = jax.jit(experiment.train_step), []
    for _ in range(experiment.total_steps):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))

    def released(tree):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        names = (jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves)
        return to_torch(
            {name: np.asarray(leaf) for name, (_, leaf) in zip(names, leaves, strict=True)},
            experiment.architecture,
        )

    return losses, released(state.params), released(state.ema_params)


def assert_went_the_same_way(ours, start, expected):
    """Each tensor within a thousandth of the way that it moved.

    But for the biases of the positional projections: the softmax does not see them, so their
    gradients are rounding, which AdamW scales up.
    """
    assert set(ours) == set(expected)
    compared = 0
    for name, end in expected.items():
        if name.endswith("pos_proj.bias"):
            continue
        way = np.abs(end - start[name]).max()
        assert way > 1e-4, name
        distance = np.abs(ours[name] - end).max()
        assert distance <= 1e-3 * way, f"{name}: {distance:.2g} from it, of a way of {way:.2g}"
        compared += 1
    assert compared == 47


def test_every_loss_is_the_references(trained, reference):
    losses, _, _ = trained
    assert len(losses) == STEPS
    np.testing.assert_allclose(losses, reference["losses"], rtol=1e-5)
    assert losses[-1] < 0.85 * losses[0]


def test_the_parameters_end_where_the_references_do(trained, reference):
    _, params, _ = trained
    assert_went_the_same_way(params, of_prefix(reference, "init/"), of_prefix(reference, "final/"))


def test_the_running_average_ends_where_the_references_does(trained, reference):
    _, _, average = trained
    assert_went_the_same_way(
        average, of_prefix(reference, "init/"), of_prefix(reference, "ema_0.9/")
    )
