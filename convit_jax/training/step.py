"""The training step: a pure function of (state, batch)."""

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
    """Everything that training changes; with the config, all that resuming a run needs.

    Attributes:
        step: number of completed steps, int32.
        params: the model's parameters, float32.
        opt_state: the optimizer's state.
        ema_params: exponential moving average of the parameters, or None.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema_params: Any | None

    @property
    def eval_params(self) -> Any:
        """The parameters to evaluate: the moving average if there is one."""
        return self.params if self.ema_params is None else self.ema_params


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """Settings of the training step.

    Attributes:
        seed: all randomness of step n is a function of (seed, n).
        num_classes: length of the logits.
        mean, std: mean and standard deviation of each image channel, in units of full scale.
        label_smoothing: share of the label spread over all classes.
        accumulate: number of parts a batch is split into for gradient accumulation.
        ema_decay: decay of the moving average per step; 0 for none.
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
    """Return the key from which all randomness of a step derives."""
    return jax.random.fold_in(jax.random.key(seed), step)


def split_step_key(key: jax.Array) -> jax.Array:
    """Split a step's key into the keys of the model, of erasing and of mixing."""
    return jax.random.split(key, 3)


def augment(
    batch: dict[str, jax.Array], config: StepConfig, erase_key: jax.Array, mix_key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Apply the augmentation that runs on the device to uint8 images and integer labels.

    Returns:
        Images, float32 [B, H, W, channels], normalised, erased and mixed, and labels, float32
        [B, num_classes].
    """
    images = normalise(batch["image"], config.mean, config.std)
    labels = soft_labels(batch["label"], config.num_classes, config.label_smoothing)
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
    """Return the function (state, batch) → (next state, metrics).

    The batch has `image`, uint8 [B, H, W, channels], and `label`, int [B]. The metrics are float32
    scalars on the device: loss, accuracy, gradient norm and learning rate.
    """

    def loss_fn(
        params: Any, batch: dict[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        model_key, erase_key, mix_key = split_step_key(key)
        images, labels = augment(batch, config, erase_key, mix_key)
        logits = nnx.merge(model, nnx.State(params))(images, key=model_key)
        accuracy = (logits.argmax(-1) == labels.argmax(-1)).mean(dtype=jnp.float32)
        return optax.softmax_cross_entropy(logits, labels).mean(), accuracy

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

    def accumulated_grad_fn(params: Any, batch: dict[str, jax.Array], key: jax.Array) -> Any:
        """Return ((loss, accuracy), gradients), means over the batch."""
        if config.accumulate == 1:
            return grad_fn(params, batch, key)

        # Rows, or pairs of rows to be mixed, go to the parts in turn, so that each device's rows
        # stay on it.
        unit = 2 if config.mixing.enabled else 1

        def split(rows: jax.Array) -> jax.Array:
            units = rows.reshape(-1, config.accumulate, unit, *rows.shape[1:])
            return jnp.moveaxis(units, 1, 0).reshape(config.accumulate, -1, *rows.shape[1:])

        def add_part(total: Any, part_and_index: Any) -> tuple[Any, None]:
            part, index = part_and_index
            result = grad_fn(params, part, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, total, result), None

        parts = jax.tree.map(split, batch)
        zeros = jax.tree.map(jnp.zeros_like, ((0.0, 0.0), params))
        total, _ = jax.lax.scan(add_part, zeros, (parts, jnp.arange(config.accumulate)))
        return jax.tree.map(lambda x: x / config.accumulate, total)

    def train_step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
        key = step_key(config.seed, state.step)
        (loss, accuracy), gradients = accumulated_grad_fn(state.params, batch, key)
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
    """Return the state before the first step."""
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        # A copy, because the same buffer cannot be donated twice.
        ema_params=jax.tree.map(jnp.copy, params) if ema else None,
    )
