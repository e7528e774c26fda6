import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from convit_jax.config import NO_DECAY, resolve
from convit_jax.errors import InputError
from convit_jax.training.optimizer import (
    decay_mask,
    learning_rate,
    make_optimizer,
    match_parameters,
    parameter_names,
)
from tests.helpers import abstract_parameters


def test_a_convit_decays_70_tensors_of_180():
    mask = decay_mask(abstract_parameters("convit_tiny"), NO_DECAY)
    assert (sum(jax.tree.leaves(mask)), len(jax.tree.leaves(mask))) == (70, 180)
    assert mask["blocks"][0]["attention"]["pos_proj"] == {"kernel": True, "bias": False}
    assert not mask["blocks"][0]["attention"]["gating"]
    assert not mask["cls_token"]
    assert not mask["pos_embed"]


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("deit_tiny", {}),
        ("deit_tiny", {"distillation_token": True, "layer_scale": 0.1}),
        ("convit_tiny", {"use_gating": False, "use_pos_embed": False}),
    ],
)
def test_the_default_no_decay_patterns_match_in_every_model(name, overrides):
    params = abstract_parameters(name, **overrides)
    matrices = [n.endswith("kernel") for n in parameter_names(params)]
    assert jax.tree.leaves(decay_mask(params, NO_DECAY)) == matrices


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r".*/kernal$", r"'\.\*/kernal\$' matches none of the 180 parameters.*'blocks.0"),
        ("(", "is not a valid regular expression"),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error(pattern, message):
    with pytest.raises(InputError, match=message):
        decay_mask(abstract_parameters("convit_tiny"), (*NO_DECAY, pattern))


@pytest.mark.parametrize("key", ["no_decay", "frozen"])
def test_an_invalid_pattern_is_reported_with_its_key(key, make_config):
    config = make_config(**{f"optimizer__{key}": ("(",)})
    params = abstract_parameters("convit_tiny")
    with pytest.raises(
        InputError, match=rf"^config\.optimizer\.{key}: '\(' is not a valid regular expr"
    ):
        make_optimizer(config.optimizer, lambda step: 0.1, params)


def test_only_parameters_in_the_mask_decay():
    params = {"a": {"kernel": jnp.ones(3), "bias": jnp.ones(3)}, "cls_token": jnp.ones(2)}
    config = resolve({"optimizer": {"weight_decay": 0.5}}).optimizer
    optimizer = make_optimizer(config, optax.constant_schedule(0.1), params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(updates["a"]["kernel"], -0.05)
    assert not updates["a"]["bias"].any()
    assert not updates["cls_token"].any()


def test_the_moments_use_the_configs_coefficients():
    """With values other than optax's defaults, which are also the config's."""
    params, first = {"kernel": jnp.ones(3)}, np.array([1e-3, -2e-3, 5e-3])
    config = resolve({"optimizer": {"b1": 0.5, "b2": 0.7, "eps": 1e-2, "no_decay": ()}}).optimizer
    optimizer = make_optimizer(config, optax.constant_schedule(0.1), params)
    state, mean, square = optimizer.init(params), 0.0, 0.0
    for step in (1, 2):
        g = first / step**3  # with equal gradients the coefficients would not matter
        updates, state = optimizer.update({"kernel": jnp.float32(g)}, state, params)
        mean, square = 0.5 * mean + 0.5 * g, 0.7 * square + 0.3 * g**2
        scaled = (mean / (1 - 0.5**step)) / (np.sqrt(square / (1 - 0.7**step)) + 1e-2)
        expected = -0.1 * (scaled + config.weight_decay)
        np.testing.assert_allclose(updates["kernel"], expected, rtol=1e-5)


def test_clipping_bounds_the_gradient_and_keeps_the_states_structure():
    params = {"kernel": jnp.zeros(4), "bias": jnp.zeros(1)}
    gradients = jax.tree.map(lambda x: x + 100.0, params)

    def first_moment(clip_norm):
        config = resolve(
            {"optimizer": {"clip_norm": clip_norm, "no_decay": (r".*bias",)}}
        ).optimizer
        optimizer = make_optimizer(config, optax.constant_schedule(0.1), {"x": params})
        _, state = optimizer.update({"x": gradients}, optimizer.init({"x": params}), {"x": params})
        return optax.tree.get(state, "mu"), jax.tree.structure(state)

    free, structure = first_moment(0.0)
    clipped, same_structure = first_moment(1.0)
    assert structure == same_structure
    np.testing.assert_allclose(optax.tree.norm(free), 0.1 * 100 * 5**0.5, rtol=1e-5)
    np.testing.assert_allclose(optax.tree.norm(clipped), 0.1, rtol=1e-5)


def test_learning_rate_warms_up_and_follows_the_cosine_of_the_whole_run():
    # The released recipe at batch 1024: peak 1e-3, 5 epochs from 1e-6, down to 1e-5 in 300.
    config = resolve({"batch_size": 1024})
    rate = learning_rate(config, total_steps=300, warmup_steps=5, steps_per_epoch=1)
    ours = [float(rate(epoch)) for epoch in range(6)]
    expected = [1e-6, 2.008e-4, 4.006e-4, 6.004e-4, 8.002e-4, 9.993e-4]
    np.testing.assert_allclose(ours, expected, rtol=1e-4)
    assert float(rate(299)) == pytest.approx(1.003e-5, rel=1e-3)
    assert float(rate(300)) == pytest.approx(1e-5)
    assert float(rate(400)) == float(rate(600)) == pytest.approx(1e-5)
    assert float(rate(150)) == pytest.approx((1e-3 + 1e-5) / 2)  # half of the cosine


def test_only_the_peak_scales_with_the_batch():
    small, large = (
        learning_rate(resolve({"batch_size": size}), 10**6, warmup_steps=1, steps_per_epoch=9)
        for size in (512, 2048)
    )
    assert float(large(1)) == pytest.approx(4 * float(small(1)), rel=1e-6)
    assert float(large(0)) == float(small(0)) == pytest.approx(1e-6)
    assert float(large(10**6)) == float(small(10**6)) == pytest.approx(1e-5)


def test_the_released_schedule_changes_once_per_epoch_and_one_epoch_late():
    config = resolve(
        {"batch_size": 1024, "optimizer": {"schedule_every": "epoch", "schedule_lag": 1}}
    )
    rate = learning_rate(config, total_steps=3000, warmup_steps=50, steps_per_epoch=10)
    by_epoch = [[float(rate(10 * epoch + step)) for step in range(10)] for epoch in range(300)]
    assert all(len(set(rates)) == 1 for rates in by_epoch)
    expected = [1e-6, 1e-6, 2.008e-4, 4.006e-4, 6.004e-4, 8.002e-4, 9.993e-4]
    np.testing.assert_allclose([rates[0] for rates in by_epoch[:7]], expected, rtol=1e-4)
    assert by_epoch[299][0] == pytest.approx(1.011e-5, rel=1e-3)


def test_the_released_runs_decay_72_tensors_of_180():
    mask = decay_mask(abstract_parameters("convit_tiny"), NO_DECAY[:1])
    assert (sum(jax.tree.leaves(mask)), len(jax.tree.leaves(mask))) == (72, 180)
    assert mask["cls_token"]
    assert mask["pos_embed"]


def test_frozen_parameters_neither_change_nor_decay():
    """The optimizer takes the trained parameters alone, with any decay mask and layer scales."""
    params = {
        "blocks": {0: {"kernel": jnp.ones(3), "bias": jnp.ones(3)}, 1: {"kernel": jnp.ones(2)}},
        "cls_token": jnp.ones(2),
    }
    values = {"weight_decay": 0.5, "frozen": (r"blocks\.0\..*",), "layer_decay": 0.5}
    config = resolve({"optimizer": values}).optimizer
    optimizer = make_optimizer(config, optax.constant_schedule(0.1), params)
    trained = {"blocks": {1: params["blocks"][1]}, "cls_token": params["cls_token"]}
    zeros = jax.tree.map(jnp.zeros_like, trained)
    updates, state = optimizer.update(zeros, optimizer.init(trained), trained)
    assert jax.tree.structure(updates) == jax.tree.structure(trained)
    np.testing.assert_allclose(updates["blocks"][1]["kernel"], -0.1 * 0.5 * 0.5)
    assert not updates["cls_token"].any()
    assert parameter_names(optax.tree.get(state, "mu")) == ["blocks.1.kernel", "cls_token"]


def test_the_gpsa_layers_can_be_frozen_by_placeholder():
    """`{gpsa}` matches the numbers of all GPSA layers and no other layer."""
    params = abstract_parameters("convit_tiny", depth=12, gpsa_layers=11)
    mask = match_parameters(params, (r"blocks\.{gpsa}\.norm1\.scale",), "optimizer.frozen")
    assert [mask["blocks"][i]["norm1"]["scale"] for i in range(12)] == [True] * 11 + [False]
    assert sum(jax.tree.leaves(mask)) == 11
    with pytest.raises(InputError, match="matches none of the"):
        match_parameters(abstract_parameters("deit_tiny"), (r"blocks\.{gpsa}\..*",), "x")


def test_layers_near_the_images_learn_more_slowly():
    """Block i of n has decay^(n - i) of the rate, earlier parameters decay^(n + 1), the head 1."""
    block = {"norm1": {"scale": jnp.ones(1)}}
    params = {
        "patch_embed": {"kernel": jnp.ones(1)},
        "cls_token": jnp.ones(1),
        "blocks": {0: block, 1: block, 2: block},
        "norm": {"scale": jnp.ones(1)},
        "head": {"kernel": jnp.ones(1)},
    }
    ones = jax.tree.map(jnp.ones_like, params)

    def updates(layer_decay):
        values = {"layer_decay": layer_decay, "weight_decay": 0.3, "no_decay": ()}
        config = resolve({"optimizer": values}).optimizer
        optimizer = make_optimizer(config, optax.constant_schedule(0.1), params)
        return optimizer.update(ones, optimizer.init(params), params)[0]

    ratio = jax.tree.map(lambda slow, fast: float((slow / fast)[0]), updates(0.5), updates(1.0))
    assert [ratio["blocks"][i]["norm1"]["scale"] for i in range(3)] == pytest.approx(
        [0.125, 0.25, 0.5]
    )
    assert ratio["cls_token"] == ratio["patch_embed"]["kernel"] == pytest.approx(0.0625)
    assert ratio["norm"]["scale"] == ratio["head"]["kernel"] == pytest.approx(1.0)
