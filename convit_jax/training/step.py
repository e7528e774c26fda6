"""One training step and one evaluation step: pure functions of (state, batch)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from convit_jax.data.mixing import Erasing, Mixing, erase, mix, normalise, soft_labels
from convit_jax.evaluation.step import Metrics


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a run changes; with its config, all that a resumption needs.

    Attributes:
        step: steps done, int32.
        params: the model's parameters, float32.
        opt_state: the optimizer's state.
        ema_params: running average of the parameters, or None.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema_params: Any | None

    @property
    def eval_params(self) -> Any:
        """What is evaluated: the running average where there is one."""
        return self.params if self.ema_params is None else self.ema_params


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """What the steps need to know.

    Attributes:
        seed: all randomness of step n is a function of (seed, n).
        num_classes: length of the logits.
        mean, std: of the images, for each channel, in units of full scale.
        label_smoothing: share of the label spread over all classes.
        accumulate: parts that a batch is computed in.
        ema_decay: decay of the running average, a step; 0 for none.
        erasing: random erasing.
        mixing: mixup and CutMix.
    """

    seed: int
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    label_smoothing: float
    accumulate: int
    ema_decay: float
    erasing: Erasing
    mixing: Mixing


def step_key(seed: int, step: jax.Array | int) -> jax.Array:
    """All randomness of a step: a function of the seed and the step."""
    return jax.random.fold_in(jax.random.key(seed), step)


def step_keys(key: jax.Array) -> jax.Array:
    """A step's randomness for the model, for erasing and for mixing."""
    return jax.random.split(key, 3)


def augmented(
    part: dict[str, jax.Array], config: StepConfig, erase_key: jax.Array, mix_key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The device's part of augmentation: uint8 images and labels → what the loss is taken of.

    Returns:
        Images, float32 [B, H, W, channels], normalised, erased and mixed, and labels, float32
        [B, num_classes].
    """
    images = normalise(part["image"], config.mean, config.std)
    labels = soft_labels(part["label"], config.num_classes, config.label_smoothing)
    if config.erasing.prob:
        images = erase(images, config.erasing, erase_key)
    if config.mixing.enabled:
        images, labels = mix(images, labels, config.mixing, mix_key)
    return images, labels


def make_train_step(
    model: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: StepConfig,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Metrics]]:
    """The function (state, batch) → (next state, metrics).

    The batch has `image`, uint8 [B, H, W, channels], and `label`, int [B]. The metrics are float32
    scalars on the device: loss, accuracy, gradient norm and learning rate.
    """

    def loss_of_part(
        params: Any, part: dict[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        model_key, erase_key, mix_key = step_keys(key)
        images, labels = augmented(part, config, erase_key, mix_key)
        logits = nnx.merge(model, nnx.State(params))(images, key=model_key)
        hits = (logits.argmax(-1) == labels.argmax(-1)).mean(dtype=jnp.float32)
        return optax.softmax_cross_entropy(logits, labels).mean(), hits

    gradient_of_part = jax.value_and_grad(loss_of_part, has_aux=True)

    def gradient(params: Any, batch: dict[str, jax.Array], key: jax.Array) -> Any:
        """((loss, accuracy), gradients), means over the batch."""
        if config.accumulate == 1:
            return gradient_of_part(params, batch, key)

        # Rows, or pairs of rows to be mixed, are dealt out to the parts in turn, so that each
        # device's rows stay on it.
        unit = 2 if config.mixing.enabled else 1

        def split(rows: jax.Array) -> jax.Array:
            dealt = rows.reshape(-1, config.accumulate, unit, *rows.shape[1:])
            return jnp.moveaxis(dealt, 1, 0).reshape(config.accumulate, -1, *rows.shape[1:])

        def add_part(total: Any, part_and_index: Any) -> tuple[Any, None]:
            part, index = part_and_index
            result = gradient_of_part(params, part, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, total, result), None

        parts = jax.tree.map(split, batch)
        zeros = jax.tree.map(jnp.zeros_like, ((0.0, 0.0), params))
        total, _ = jax.lax.scan(add_part, zeros, (parts, jnp.arange(config.accumulate)))
        return jax.tree.map(lambda x: x / config.accumulate, total)

    def train_step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
        key = step_key(config.seed, state.step)
        (loss, accuracy), gradients = gradient(state.params, batch, key)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = state.ema_params
        if ema_params is not None:
            ema_params = optax.incremental_update(params, ema_params, 1.0 - config.ema_decay)
        metrics = {
            "loss": loss,
            "accuracy": accuracy,
            "gradient_norm": optax.tree.norm(gradients),
            "learning_rate": schedule(state.step),
        }
        return TrainState(state.step + 1, params, opt_state, ema_params), metrics

    return train_step


def new_state(
    model: nnx.Module, optimizer: optax.GradientTransformation, *, ema: bool
) -> TrainState:
    """The state before the first step."""
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        # A copy: a donated buffer can be given away only once.
        ema_params=jax.tree.map(jnp.copy, params) if ema else None,
    )
