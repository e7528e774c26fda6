"""Frozen parameters: no gradient, no moments, no share in the gradient's norm."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from flax import nnx

from convit_jax.config import NO_DECAY
from convit_jax.data.mixing import normalise, soft_labels
from convit_jax.distributed import mesh
from convit_jax.errors import InputError
from convit_jax.training import checkpoints as saving
from convit_jax.training import make_experiment
from convit_jax.training.optimizer import (
    decay_mask,
    match_parameters,
    merge_parameters,
    parameter_names,
    split_parameters,
    trainable_filter,
)
from convit_jax.training.restoration import restore_newest
from convit_jax.training.resumption import DataRecord
from convit_jax.training.step import TrainState, make_train_step
from convit_jax.weights import Card

PROBE = (r"(?!head\.).*",)
# The lower half, so that the backward pass can stop, and a layer above it, which it passes through.
PARTS = (r"patch_embed\..*", r"cls_token|pos_embed", r"blocks\.0\..*", r"blocks\.1\.mlp\..*")


def make_batch(seed=0, size=16):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (size, 8, 8, 1)).astype(np.uint8),
        "label": rng.integers(0, 10, size).astype(np.int32),
    }


@pytest.fixture
def experiment_of(make_config):
    """A function of overrides that returns an experiment without randomness in its steps."""

    def make(**overrides):
        config = make_config(model__drop_path_rate=0.0, **overrides)
        return make_experiment(config, num_examples=100, num_classes=10)

    return make


def take_steps(experiment, num_steps):
    """Train on different batches; return the states and metrics."""
    step = jax.jit(experiment.train_step)
    states, metrics = [jax.jit(experiment.init_state)()], []
    for seed in range(num_steps):
        state, values = step(states[-1], make_batch(seed))
        states.append(state)
        metrics.append(values)
    return states, metrics


def reference_gradients(experiment, params, batch):
    """Return the gradients of all parameters, computed without the step."""

    def loss(params):
        images = normalise(jnp.asarray(batch["image"]), (0.3,), (0.4,))
        labels = soft_labels(batch["label"], 10, experiment.step_config.label_smoothing)
        logits = nnx.merge(experiment.graph, nnx.State(params))(images)
        return optax.softmax_cross_entropy(logits, labels).mean()

    return jax.jit(jax.grad(loss))(params)


def names_of(tree):
    return set(parameter_names(tree))


def compiled_flops(function, *args):
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]


def test_parameters_are_split_by_name_and_merged_again(experiment_of):
    params = experiment_of().abstract_state().params
    trainable = trainable_filter(params, (r"blocks\.0\..*", "cls_token"))
    trained, frozen = split_parameters(params, trainable)
    expected = {n for n in names_of(params) if n.startswith("blocks.0.") or n == "cls_token"}
    assert names_of(frozen) == expected
    assert names_of(trained) == names_of(params) - expected
    assert merge_parameters(trained, frozen) == params
    assert split_parameters(params, trainable_filter(params, ())) == (params, {})


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("frozen", [PROBE, PARTS])
def test_the_step_holds_gradients_and_moments_of_the_trained_alone(
    experiment_of, frozen, accumulate
):
    experiment = experiment_of(optimizer__frozen=frozen, optimizer__accumulate=accumulate)
    state = experiment.abstract_state()
    mask = jax.tree.leaves(match_parameters(state.params, frozen, "frozen"))
    named = zip(parameter_names(state.params), mask, strict=True)
    trained = {name for name, is_frozen in named if not is_frozen}
    assert 0 < len(trained) < len(mask)
    assert names_of(optax.tree.get(state.opt_state, "mu")) == trained
    assert names_of(optax.tree.get(state.opt_state, "nu")) == trained

    received = []

    def record(gradients, _, params):
        received.append((names_of(gradients), names_of(params)))
        return gradients, ()

    recorder = optax.GradientTransformation(lambda params: (), record)
    step = make_train_step(
        experiment.graph, recorder, lambda step: 0.1, experiment.step_config, experiment.trainable
    )
    jax.eval_shape(step, dataclasses.replace(state, opt_state=()), make_batch())
    assert received == [(trained, trained)]


def test_a_probe_costs_a_forward_pass_and_half_a_model_half_a_backward_pass(experiment_of):
    """Counted in compiled programs of a model large enough that its products dominate."""
    sizes = {"num_heads": 4, "head_dim": 16, "depth": 4, "gpsa_layers": 2, "patch_size": 2,
             "in_channels": 1, "drop_path_rate": 0.0}  # fmt: skip

    def flops(*frozen):
        experiment = experiment_of(model=sizes, optimizer__frozen=frozen)
        return compiled_flops(experiment.train_step, experiment.abstract_state(), make_batch())

    experiment = experiment_of(model=sizes)

    def classify(params, images):
        return nnx.merge(experiment.graph, nnx.State(params))(images)

    images = jax.ShapeDtypeStruct((16, 8, 8, 1), jnp.float32)
    forward = compiled_flops(classify, experiment.abstract_state().params, images)
    full, probe = flops(), flops(*PROBE)
    half = flops(r"patch_embed\..*", "cls_token", "pos_embed", r"blocks\.[01]\..*")
    assert forward < probe < 1.1 * forward
    assert probe < 0.4 * full
    assert probe + 0.35 * (full - probe) < half < probe + 0.6 * (full - probe)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_norm_that_is_clipped_and_reported_is_that_of_the_trained(experiment_of, accumulate):
    clip_norm = 0.1
    experiment = experiment_of(
        optimizer__frozen=PARTS, optimizer__clip_norm=clip_norm, optimizer__accumulate=accumulate
    )
    (before, after), (metrics,) = take_steps(experiment, 1)
    everything = reference_gradients(experiment, before.params, make_batch())
    gradients, others = split_parameters(everything, experiment.trainable)
    norm = float(optax.tree.norm(gradients))
    assert norm > 2 * clip_norm
    assert float(optax.tree.norm(others)) > 0.1 * norm  # would change the result if counted
    assert float(metrics["gradient_norm"]) == pytest.approx(norm, rel=1e-4)
    clip = optax.clip_by_global_norm(clip_norm)
    clipped, _ = clip.update(gradients, clip.init(gradients))
    mu = optax.tree.get(after.opt_state, "mu")
    for expected, array in zip(jax.tree.leaves(clipped), jax.tree.leaves(mu), strict=True):
        np.testing.assert_allclose(array, 0.1 * expected, rtol=1e-3, atol=1e-7)


def earlier_optimizer(experiment, params, frozen):
    """The optimizer of earlier versions: of all parameters, frozen ones' updates are discarded."""
    o = experiment.config.optimizer
    rate = o.learning_rate * experiment.config.batch_size / o.learning_rate_batch
    adamw = optax.adamw(
        optax.constant_schedule(rate),
        b1=o.b1,
        b2=o.b2,
        eps=o.eps,
        weight_decay=o.weight_decay,
        mask=decay_mask(params, NO_DECAY),
    )
    mask = match_parameters(params, frozen, "optimizer.frozen")
    return optax.chain(
        optax.chain(optax.identity(), adamw), optax.masked(optax.set_to_zero(), mask)
    )


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("frozen", [PROBE, PARTS])
def test_without_clipping_the_trained_are_updated_as_if_nothing_were_frozen(
    experiment_of, frozen, accumulate
):
    experiment = experiment_of(
        optimizer__frozen=frozen,
        optimizer__accumulate=accumulate,
        optimizer__eps=1e-2,  # with less, gradients that are rounding would become full updates
        optimizer__warmup="0 steps",
    )
    before = jax.jit(experiment.init_state)()
    optimizer = earlier_optimizer(experiment, before.params, frozen)
    constant = optax.constant_schedule(1e-2)
    step = jax.jit(make_train_step(experiment.graph, optimizer, constant, experiment.step_config))
    rate = experiment.config.optimizer.learning_rate
    assert rate == 1e-2
    expected, _ = step(dataclasses.replace(before, opt_state=optimizer.init(before.params)),
                       make_batch())  # fmt: skip
    after, metrics = jax.jit(experiment.train_step)(before, make_batch())
    assert float(metrics["learning_rate"]) == pytest.approx(rate)
    trained, unchanged = split_parameters(after.params, experiment.trainable)
    for name, old, new, reference in zip(
        parameter_names(before.params),
        *(jax.tree.leaves(tree) for tree in (before.params, after.params, expected.params)),
        strict=True,
    ):
        np.testing.assert_allclose(new, reference, rtol=1e-5, atol=1e-7, err_msg=name)
        assert np.array_equal(old, new) == (name in names_of(unchanged)), name
    assert names_of(trained)


def test_the_average_of_frozen_parameters_is_unchanged_to_the_bit(experiment_of):
    """0.7 x + 0.3 x is not x: averages that are computed would drift by rounding."""
    experiment = experiment_of(optimizer__frozen=PARTS, ema_decay=0.7)
    states, _ = take_steps(experiment, 3)
    average, frozen_average = split_parameters(states[3].ema_params, experiment.trainable)
    _, frozen = split_parameters(states[0].params, experiment.trainable)
    for expected, array in zip(
        jax.tree.leaves(frozen), jax.tree.leaves(frozen_average), strict=True
    ):
        np.testing.assert_array_equal(array, expected)
    expected = states[0].params["head"]["kernel"]
    for state in states[1:]:
        expected = 0.7 * expected + 0.3 * state.params["head"]["kernel"]
    np.testing.assert_allclose(average["head"]["kernel"], expected, rtol=1e-5)


def test_with_everything_frozen_a_step_changes_nothing(experiment_of):
    experiment = experiment_of(optimizer__frozen=(".*",), optimizer__clip_norm=1.0)
    (before, after), (metrics,) = take_steps(experiment, 1)
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)
    assert float(metrics["gradient_norm"]) == 0
    assert float(metrics["loss"]) > 0


@pytest.fixture
def restored_from(make_config, tmp_path):
    """A function of a state and an experiment: save one, return what the other restores."""
    opened = []

    def restore(state, experiment):
        config = experiment.config
        store = saving.open_checkpoints(epath.Path(tmp_path / "checkpoints"), config.checkpoint)
        opened.append(store)
        saving.save(store, state, 2, config, Card(), None, DataRecord(100))
        saving.finish_saving(store)
        abstract = experiment.abstract_state()
        everywhere = mesh.replicated(mesh.create_mesh())
        return restore_newest(store, abstract, jax.tree.map(lambda _: everywhere, abstract))

    yield restore
    for store in opened:
        store.close()


def state_of_an_earlier_version(experiment, frozen):
    """A state with moments of all parameters, after two steps."""
    state = jax.jit(experiment.init_state)()
    optimizer = earlier_optimizer(experiment, state.params, frozen)
    constant = optax.constant_schedule(1e-2)
    step = jax.jit(make_train_step(experiment.graph, optimizer, constant, experiment.step_config))
    state = dataclasses.replace(state, opt_state=optimizer.init(state.params))
    for seed in range(2):
        state, _ = step(state, make_batch(seed))
    return state


@pytest.mark.parametrize("frozen", [PROBE, PARTS])
def test_a_run_of_an_earlier_version_is_resumed_without_the_frozen_moments(
    experiment_of, restored_from, frozen
):
    experiment = experiment_of(optimizer__frozen=frozen, ema_decay=0.9)
    saved = state_of_an_earlier_version(experiment, frozen)
    restored = restored_from(saved, experiment)
    assert isinstance(restored, TrainState)
    for part in ("params", "ema_params", "step"):
        jax.tree.map(np.testing.assert_array_equal, getattr(restored, part), getattr(saved, part))
    for moment in ("mu", "nu"):
        expected, _ = split_parameters(
            optax.tree.get(saved.opt_state, moment), experiment.trainable
        )
        jax.tree.map(
            np.testing.assert_array_equal, optax.tree.get(restored.opt_state, moment), expected
        )
    after, _ = jax.jit(experiment.train_step)(restored, make_batch(2))
    assert int(after.step) == 3


def test_a_checkpoint_with_a_parameter_too_many_is_refused(experiment_of, restored_from):
    """Only moments of parameters that the state has may be dropped."""
    experiment = experiment_of(optimizer__frozen=PROBE)
    state = state_of_an_earlier_version(experiment, PROBE)
    state.params["head"]["extra"] = state.params["head"]["bias"]
    optax.tree.get(state.opt_state, "mu")["unknown"] = state.params["head"]["bias"]
    with pytest.raises(InputError, match=r"another state than this run's: opt_state.*unknown.*none "
                       r"expected.*params\.head\.extra"):  # fmt: skip
        restored_from(state, experiment)


def test_a_new_checkpoint_with_frozen_parameters_is_restored_bit_for_bit(
    experiment_of, restored_from
):
    experiment = experiment_of(optimizer__frozen=PARTS, ema_decay=0.9)
    states, _ = take_steps(experiment, 2)
    jax.tree.map(np.testing.assert_array_equal, restored_from(states[2], experiment), states[2])
