import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from convit_jax.data.mixing import _draw_group, normalise
from convit_jax.models import build
from convit_jax.training import make_experiment
from convit_jax.training.step import split_step_key, step_key
from tests.helpers import assert_trees_close


def make_batch(size=16, seed=0, **extra):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (size, 8, 8, 1)).astype(np.uint8),
        "label": rng.integers(0, 10, size).astype(np.int32),
    } | extra


def logits_of(experiment, batch):
    """Return the logits of the untrained model, called directly."""
    images = normalise(jnp.asarray(batch["image"]), (0.3,), (0.4,))
    return jax.jit(lambda x: build(experiment.architecture, experiment.config.seed)(x))(images)


@pytest.fixture
def run_steps(make_config):
    """A function that trains on some batches, returning experiment, states and metrics."""

    def run(batches, **overrides):
        experiment = make_experiment(make_config(**overrides), num_examples=100, num_classes=10)
        step = jax.jit(experiment.train_step)
        states, metrics = [jax.jit(experiment.init_state)()], []
        for batch in batches:
            state, values = step(states[-1], batch)
            states.append(state)
            metrics.append(values)
        return experiment, states, metrics

    return run


def test_the_loss_is_the_cross_entropy_of_the_models_logits(run_steps):
    batch = make_batch()
    overrides = {"model__drop_path_rate": 0.0, "label_smoothing": 0.2}
    experiment, states, metrics = run_steps([batch], **overrides)
    logits = logits_of(experiment, batch)
    labels = jax.nn.one_hot(batch["label"], 10) * 0.8 + 0.02
    expected = -jnp.mean(jnp.sum(labels * jax.nn.log_softmax(logits), -1))
    assert float(metrics[0]["loss"]) == pytest.approx(float(expected), rel=1e-5)
    accuracy = np.mean(np.argmax(logits, -1) == batch["label"])
    assert float(metrics[0]["accuracy"]) == pytest.approx(accuracy)
    assert [int(state.step) for state in states] == [0, 1]


def test_repeated_steps_on_a_batch_lower_its_loss(run_steps):
    _, _, metrics = run_steps([make_batch()] * 12, model__drop_path_rate=0.0, label_smoothing=0.0)
    losses = [float(values["loss"]) for values in metrics]
    assert losses[-1] < 0.9 * losses[0]


def test_the_randomness_of_a_step_is_a_function_of_seed_and_step(run_steps):
    batch = make_batch()
    _, _, first = run_steps([batch, batch], model__drop_path_rate=0.5)
    _, _, second = run_steps([batch, batch], model__drop_path_rate=0.5)
    assert [float(m["loss"]) for m in first] == [float(m["loss"]) for m in second]

    experiment, states, _ = run_steps([], model__drop_path_rate=0.5)
    step = jax.jit(experiment.train_step)
    losses = {
        float(step(dataclasses.replace(states[0], step=jnp.int32(n)), batch)[1]["loss"])
        for n in range(4)
    }
    assert len(losses) == 4


@pytest.mark.parametrize("accumulate", [2, 4])
def test_gradient_accumulation_gives_the_same_step(run_steps, accumulate):
    batches = [make_batch(seed=seed) for seed in range(3)]
    _, expected_states, expected_metrics = run_steps(batches, model__drop_path_rate=0.0)
    _, states, metrics = run_steps(
        batches, model__drop_path_rate=0.0, optimizer__accumulate=accumulate
    )
    for expected, values in zip(expected_metrics, metrics, strict=True):
        for name in expected:
            assert float(expected[name]) == pytest.approx(float(values[name]), rel=1e-4)
    # Moments, not parameters: AdamW divides by gradients that for some parameters are rounding.
    expected_mu = optax.tree.get(expected_states[1].opt_state, "mu")
    mu = optax.tree.get(states[1].opt_state, "mu")
    assert_trees_close(mu, expected_mu, rtol=1e-3, atol=1e-6)


MIXED = {"mixup": 0.8, "cutmix": 1.0, "mix_group": 4, "erase": 0.5}


@pytest.mark.parametrize("group", [2, 4, 0])
def test_accumulation_does_not_change_the_augmentation(run_steps, group):
    """Groups stay whole or are divided among the parts; the same draws erase and mix each row."""
    batches = [make_batch(seed=seed) for seed in range(3)]
    options = {"model__drop_path_rate": 0.0, "augment": MIXED | {"mix_group": group}}
    _, _, expected = run_steps(batches, **options)
    for accumulate in (2, 4):
        _, _, metrics = run_steps(batches, optimizer__accumulate=accumulate, **options)
        for ours, values in zip(expected, metrics, strict=True):
            for name in ("loss", "gradient_norm"):
                assert float(ours[name]) == pytest.approx(float(values[name]), rel=1e-4)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_loss_of_mixed_groups_equals_numpys(run_steps, accumulate):
    """Mixed by NumPy with the draws of each group of four rows, drawn one group at a time."""
    batch, augment = make_batch(), MIXED | {"erase": 0.0}
    experiment, _, metrics = run_steps(
        [batch], model__drop_path_rate=0.0, augment=augment, optimizer__accumulate=accumulate
    )
    config = experiment.step_config
    _, _, mix_key = split_step_key(step_key(config.seed, 0))
    images = (batch["image"] / 255.0 - 0.3) / 0.4
    labels = np.eye(10)[batch["label"]] * 0.9 + 0.01
    mixed, mixed_labels = np.empty_like(images), np.empty_like(labels)
    weights = set()
    for group in range(4):
        draws = _draw_group(config.mixing, (8, 8), jax.random.fold_in(mix_key, group))
        weight, (top, bottom, left, right) = float(draws.weight), np.asarray(draws.box)
        weights.add((weight, top, bottom, left, right))
        own = np.full((8, 8, 1), weight)
        own[top:bottom, left:right] = 0
        for row in range(4 * group, 4 * group + 4):
            mixed[row] = own * images[row] + (1 - own) * images[row ^ 1]
            mixed_labels[row] = own.mean() * labels[row] + (1 - own.mean()) * labels[row ^ 1]
    assert len(weights) == 4
    model = jax.jit(lambda x: build(experiment.architecture, experiment.config.seed)(x))
    logits = np.asarray(model(jnp.asarray(mixed, jnp.float32)))
    expected = -np.mean(np.sum(mixed_labels * np.asarray(jax.nn.log_softmax(logits)), -1))
    assert float(metrics[0]["loss"]) == pytest.approx(expected, rel=1e-5)


def test_the_moving_average_follows_its_definition_and_is_evaluated(run_steps):
    _, states, _ = run_steps([make_batch(), make_batch(seed=1)], ema_decay=0.75)
    expected = states[0].params["head"]["kernel"]
    assert jnp.array_equal(states[0].ema_params["head"]["kernel"], expected)
    for state in states[1:]:
        expected = 0.75 * expected + 0.25 * state.params["head"]["kernel"]
        np.testing.assert_allclose(state.ema_params["head"]["kernel"], expected, rtol=1e-5)
        assert state.eval_params is state.ema_params


def test_without_a_moving_average_the_parameters_are_evaluated(run_steps):
    _, states, _ = run_steps([])
    assert states[0].ema_params is None
    assert states[0].eval_params is states[0].params


def test_evaluation_sums_the_rows_of_mask_one(run_steps):
    experiment, states, _ = run_steps([])
    batch = make_batch(size=8, mask=np.array([1, 1, 1, 0, 1, 0, 0, 1], np.float32))
    sums = jax.jit(experiment.eval_step)(states[0].params, batch)
    logits = np.asarray(logits_of(experiment, batch))
    unmasked, label = batch["mask"] == 1, batch["label"]
    ranking = np.argsort(-logits, -1)
    log_probabilities = np.asarray(jax.nn.log_softmax(logits))
    assert float(sums["examples"]) == 5
    assert float(sums["accuracy"]) == np.sum((ranking[:, 0] == label)[unmasked])
    in_top5 = (ranking[:, :5] == label[:, None]).any(-1)
    assert float(sums["accuracy_top5"]) == np.sum(in_top5[unmasked])
    losses = -log_probabilities[np.arange(8), label]
    assert float(sums["loss"]) == pytest.approx(losses[unmasked].sum(), rel=1e-5)


def test_nan_logits_are_never_correct(run_steps):
    experiment, states, _ = run_steps([])
    params = jax.tree.map(lambda x: x * jnp.nan, states[0].params)
    batch = make_batch(size=4, mask=np.ones(4, np.float32))
    sums = jax.jit(experiment.eval_step)(params, batch)
    assert float(sums["accuracy"]) == float(sums["accuracy_top5"]) == 0.0


def test_no_buffer_of_the_donated_state_is_shared(make_config):
    """The moving average starts as a copy of the parameters."""
    experiment = make_experiment(make_config(ema_decay=0.9), num_examples=100, num_classes=10)
    state = jax.jit(experiment.init_state)()
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(set(pointers)) == len(pointers)
    jax.jit(experiment.train_step, donate_argnums=0)(state, make_batch())
