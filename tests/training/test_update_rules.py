"""LAMB and Muon: their definitions by NumPy, and what they share with AdamW."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from convit_jax.config import resolve
from convit_jax.training import loop
from convit_jax.training.optimizer import make_optimizer, parameter_names
from tests.faults.comparison import arrays

RATE = 0.1
RNG = np.random.default_rng(0)


def parameters():
    """Two blocks of the shapes that matter, and what lies around them."""
    block = {
        "attention": {
            "gating": jnp.ones(2),
            "pos_proj": {"kernel": jnp.asarray(RNG.normal(size=(3, 2)))},
            "qk": {"kernel": jnp.asarray(RNG.normal(size=(6, 12)))},
        },
        "mlp": {"fc2": {"kernel": jnp.asarray(RNG.normal(size=(8, 6))), "bias": jnp.zeros(6)}},
    }
    return {
        "patch_embed": {"kernel": jnp.asarray(RNG.normal(size=(4, 6)))},
        "cls_token": jnp.ones((1, 1, 6)),
        "pos_embed": jnp.ones((1, 4, 6)),
        "blocks": {0: block, 1: block},
        "head": {"kernel": jnp.asarray(RNG.normal(size=(6, 3)))},
    }


PARAMETERS = parameters()
HIDDEN = [name for name in parameter_names(PARAMETERS) if ".qk." in name or "fc2.kernel" in name]
GRADIENTS = [
    jax.tree.map(lambda x: jnp.asarray(RNG.normal(size=x.shape)), PARAMETERS) for _ in range(2)
]


def updates_of(**options):
    """Return the updates of two steps at the same parameters: [{name: update}, …]."""
    config = resolve({"optimizer": options}).optimizer
    optimizer = make_optimizer(config, optax.constant_schedule(RATE), PARAMETERS)
    state, steps = optimizer.init(PARAMETERS), []
    for gradients in GRADIENTS:
        updates, state = optimizer.update(gradients, state, PARAMETERS)
        values = map(np.asarray, jax.tree.leaves(updates))
        steps.append(dict(zip(parameter_names(updates), values, strict=True)))
    return steps


def named(tree):
    return dict(zip(parameter_names(tree), map(np.float64, jax.tree.leaves(tree)), strict=True))


def test_lamb_gives_each_tensor_a_step_of_its_own_norm():
    """You et al. 2020, Algorithm 2, with no bound of the norms."""
    options = {"b1": 0.5, "b2": 0.7, "eps": 1e-3, "weight_decay": 0.2, "no_decay": (".*gating",)}
    ours = updates_of(name="lamb", **options)
    gradients, params = [named(tree) for tree in GRADIENTS], named(PARAMETERS)
    for name, x in params.items():
        mean, square = 0.0, 0.0
        for step, g in enumerate(gradients, 1):
            mean, square = 0.5 * mean + 0.5 * g[name], 0.7 * square + 0.3 * g[name] ** 2
            ratio = (mean / (1 - 0.5**step)) / (np.sqrt(square / (1 - 0.7**step)) + 1e-3)
            update = ratio + 0.2 * x * ("gating" not in name)
            trust = np.linalg.norm(x) / np.linalg.norm(update) if x.any() else 1.0
            np.testing.assert_allclose(ours[step - 1][name], -RATE * trust * update, rtol=1e-4)


def orthogonalised(x):
    """Five of Newton and Schulz's steps with Jordan's coefficients, in float64."""
    x = x / (np.linalg.norm(x) + 1e-8)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x


def test_muon_orthogonalises_the_hidden_matrices():
    """Jordan et al. 2024, Nesterov's momentum of 0.95; scaled by Liu et al. 2025, section 2.2."""
    ours = updates_of(name="muon", weight_decay=0.2)
    first, params = named(GRADIENTS[0]), named(PARAMETERS)
    assert len(HIDDEN) == 4
    for name in HIDDEN:
        update = orthogonalised(first[name]) * 0.2 * max(params[name].shape) ** 0.5
        expected = -RATE * (update + 0.2 * params[name])
        np.testing.assert_allclose(ours[0][name], expected, rtol=2e-3, atol=1e-5)
    # Its root mean square is that of AdamW's updates, so that a learning rate fits both.
    update = updates_of(name="muon", weight_decay=0.0)[1]["blocks.0.attention.qk.kernel"] / RATE
    assert 0.1 < np.sqrt((update**2).mean()) < 0.3


def test_muon_leaves_all_other_parameters_to_adamw():
    """Positions, gates, patches, the head and vectors, also with decay and layer-wise rates."""
    options = {"weight_decay": 0.2, "layer_decay": 0.5, "b1": 0.8}
    for muon, adamw in zip(
        updates_of(name="muon", **options), updates_of(name="adamw", **options), strict=True
    ):
        for name in muon:
            same = np.array_equal(muon[name], adamw[name])
            assert same == (name not in HIDDEN), name


@pytest.mark.parametrize("rule", ["lamb", "muon"])
def test_masks_and_layer_wise_rates_hold_for_every_rule(rule):
    plain = updates_of(name=rule, weight_decay=0.0)[0]
    exempt = updates_of(name=rule, weight_decay=0.3, no_decay=(r".*",))[0]
    slow = updates_of(name=rule, weight_decay=0.0, layer_decay=0.5)[0]
    for name, update in plain.items():
        np.testing.assert_array_equal(exempt[name], update)
        factor = 1.0 if name.startswith("head") else 0.125
        if name.startswith("blocks"):
            factor = 0.25 if name.startswith("blocks.0") else 0.5
        np.testing.assert_allclose(slow[name], factor * update, rtol=1e-6)


def test_a_resumed_run_with_muon_is_bit_identical(make_config, tmp_path):
    """Its state is one of two rules; LAMB's is the same as AdamW's."""
    config = make_config(
        train_for="4 steps", eval_every="4 steps", checkpoint__every="2 steps",
        optimizer__name="muon", optimizer__frozen=("cls_token",), ema_decay=0.9,
    )  # fmt: skip
    loop.train(config, str(tmp_path / "whole"))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "4")
    loop.train(config, str(tmp_path / "cut"))
    whole, resumed = (arrays(tmp_path / name / "checkpoints" / "4") for name in ("whole", "cut"))
    assert whole == resumed
    assert any(".mu." in name for name in whole)
