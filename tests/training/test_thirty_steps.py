"""Thirty steps of a tiny ConViT, compared with the same steps by torch's AdamW in float64.

`tests/data/thirty_steps.npz` holds the reference: parameters before and after, their moving
average and every loss. Each step uses all twenty images, so nothing is random. The comparison
covers the whole step: normalisation, label smoothing, gradients, AdamW with its decay mask, the
learning rate's cosine and the moving average.
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


def with_prefix(arrays, prefix):
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
    """Our losses, final parameters and their moving average, by the released names."""
    experiment = make_experiment(resolve(RECIPE), num_examples=20, num_classes=5)
    model = models.build(experiment.architecture)
    load_tensors(model, with_prefix(reference, "init/"))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    fresh = jax.jit(experiment.init_state)()
    state = TrainState(fresh.step, params, fresh.opt_state, jax.tree.map(jnp.copy, params))
    batch = {"image": reference["images"], "label": reference["labels"]}
    step, losses = jax.jit(experiment.train_step), []
    for _ in range(experiment.total_steps):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))

    def to_released(tree):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        names = (jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves)
        return to_torch(
            {name: np.asarray(leaf) for name, (_, leaf) in zip(names, leaves, strict=True)},
            experiment.architecture,
        )

    return losses, to_released(state.params), to_released(state.ema_params)


def assert_same_change(ours, initial, expected):
    """Check that each tensor is within a thousandth of its change from the expected one.

    Except the biases of the positional projections: softmax is invariant to them, so their
    gradients are rounding errors, which AdamW scales up.
    """
    assert set(ours) == set(expected)
    num_compared = 0
    for name, final in expected.items():
        if name.endswith("pos_proj.bias"):
            continue
        change = np.abs(final - initial[name]).max()
        assert change > 1e-4, name
        error = np.abs(ours[name] - final).max()
        assert error <= 1e-3 * change, f"{name}: error {error:.2g}, change {change:.2g}"
        num_compared += 1
    assert num_compared == 47


def test_every_loss_matches_the_reference(trained, reference):
    losses, _, _ = trained
    assert len(losses) == STEPS
    np.testing.assert_allclose(losses, reference["losses"], rtol=1e-5)
    assert losses[-1] < 0.85 * losses[0]


def test_the_final_parameters_match_the_reference(trained, reference):
    _, params, _ = trained
    assert_same_change(params, with_prefix(reference, "init/"), with_prefix(reference, "final/"))


def test_the_final_moving_average_matches_the_reference(trained, reference):
    _, _, average = trained
    assert_same_change(average, with_prefix(reference, "init/"), with_prefix(reference, "ema_0.9/"))
