"""Runs that start from existing weights: config.init_from."""

import dataclasses
import logging

import jax
import numpy as np
import pytest

from convit_jax.config import resolve
from convit_jax.distributed import mesh
from convit_jax.distributed.sharding import state_sharding
from convit_jax.errors import InputError
from convit_jax.models import architecture
from convit_jax.training import make_experiment
from convit_jax.training.optimizer import parameter_names
from convit_jax.training.warm_start import warm_start
from convit_jax.weights import Card, Weights, open_weights, to_torch
from tests.helpers import random_parameters


def random_weights(architecture, class_names=None):
    params = random_parameters(architecture, seed=1)
    card = Card(architecture, class_names)
    return params, Weights("these weights", to_torch(params, architecture), card)


TINY = {"depth": 2, "gpsa_layers": 1, "head_dim": 4, "patch_size": 8}


@pytest.fixture
def start(caplog):
    """A function that warm-starts a fresh state of a model from weights.

    Returns:
        The fresh state, the warm-started state, and its parameters by name.
    """
    caplog.set_level(logging.INFO, logger="convit_jax")

    def make(weights, class_names=("a", "b", "c"), image_size=32, ema_decay=0.0, **model):
        config = resolve(
            {
                "model": {"name": "convit_tiny"} | TINY | model,
                "data": {"image_size": (image_size,)},
                "ema_decay": ema_decay,
            }
        )
        experiment = make_experiment(config, num_examples=5000, num_classes=len(class_names))
        state = jax.jit(experiment.init_state)()
        sharding = state_sharding(state, mesh.create_mesh())
        warm = warm_start(state, weights, experiment.architecture, class_names, sharding)
        leaves = map(np.asarray, jax.tree.leaves(warm.params))
        return state, warm, dict(zip(parameter_names(warm.params), leaves, strict=True))

    return make


def tiny_architecture(**overrides):
    return architecture("convit_tiny", num_classes=3, image_size=32, **TINY | overrides)


def test_all_parameters_are_loaded_if_all_fit(start, caplog):
    params, weights = random_weights(tiny_architecture(), ("a", "b", "c"))
    _, warm, loaded = start(weights, ema_decay=0.9)
    assert all(np.array_equal(loaded[name], params[name]) for name in params)
    assert f"{len(params)} of {len(params)} parameters" in caplog.text
    same = jax.tree.map(np.array_equal, warm.params, warm.ema_params)
    assert jax.tree.all(same)
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((warm.params,
               warm.ema_params))]  # fmt: skip
    assert len(set(buffers)) == len(buffers)  # the step donates the parameters


@pytest.mark.parametrize(
    ("num_classes", "class_names", "note"),
    [
        (3, ("x", "y", "z"), "the weights' 3 classes have other names than the data's"),
        (7, None, "the weights have 7 classes, the data 3"),
    ],
)
def test_the_head_stays_fresh_if_the_classes_differ(start, num_classes, class_names, note, caplog):
    other = dataclasses.replace(tiny_architecture(), num_classes=num_classes)
    params, weights = random_weights(other, class_names)
    state, _, loaded = start(weights)
    assert np.array_equal(loaded["head.kernel"], state.params["head"]["kernel"])
    assert np.array_equal(loaded["norm.scale"], params["norm.scale"])
    assert f"fresh: head.bias, head.kernel ({note})" in caplog.text


def test_unnamed_classes_are_taken_to_be_those_of_the_data(start, caplog):
    params, weights = random_weights(tiny_architecture())
    _, _, loaded = start(weights)
    assert np.array_equal(loaded["head.kernel"], params["head.kernel"])
    assert "the head is kept: the weights do not name their 3 classes" in caplog.text


def test_absolute_positions_are_resampled_and_nothing_else(start, caplog):
    params, weights = random_weights(tiny_architecture(), ("a", "b", "c"))
    _, _, loaded = start(weights, image_size=64)
    assert loaded["pos_embed"].shape == (1, 64, 16)
    others = [name for name in params if name != "pos_embed"]
    assert all(np.array_equal(loaded[name], params[name]) for name in others)
    assert f"{len(others)} of {len(params)} parameters" in caplog.text
    assert "resampled: pos_embed, 4x4 to 8x8 patches" in caplog.text


def test_the_error_about_another_models_weights_lists_every_misfit(start):
    _, weights = random_weights(tiny_architecture(depth=3, use_gating=False))
    with pytest.raises(InputError) as caught:
        start(weights)
    message = str(caught.value)
    assert message.startswith("these weights: ")
    assert "missing: blocks.0.attn.gating_param" in message
    assert "unexpected: blocks.2.attn.proj.bias" in message


def test_another_number_of_heads_is_an_error_although_all_shapes_fit(start):
    deit = {"name": "deit_tiny", "gpsa_layers": None, "class_token_position": None}
    two_heads = architecture("deit_tiny", num_classes=3, image_size=32, depth=2, patch_size=8,
                             num_heads=2, head_dim=4)  # fmt: skip
    _, weights = random_weights(two_heads)
    with pytest.raises(InputError, match=r"weights have 2 heads per layer, the model has 4"):
        start(weights, **deit, num_heads=4, head_dim=2)


def test_a_run_starts_from_another_workdir_and_resumes_from_its_own(make_config, workdir, tmp_path):
    from convit_jax.training import loop

    config = make_config(train_for="2 steps", init_from=str(workdir), eval_every="2 steps",
                         optimizer__frozen=(r"(?!head\.).*",))  # fmt: skip
    loop.train(config, str(tmp_path))
    before, after = open_weights(workdir).tensors, open_weights(tmp_path).tensors
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"head.weight", "head.bias"}  # the probe trains only the head
    outcome = loop.train(dataclasses.replace(config, train_for="3 steps"), str(tmp_path))
    assert outcome.step == 3
