"""The training step: a pure function of (state, batch)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from convit_jax.data.mixing import (
    Erasing,
    Mixing,
    draw_mixing,
    erase,
    mix,
    normalise,
    row_keys,
    soft_labels,
)
from convit_jax.evaluation.step import Metrics, Predict
from convit_jax.training.distillation import Distillation, distilled_loss
from convit_jax.training.losses import Loss, mean_loss
from convit_jax.training.optimizer import merge_parameters, split_parameters


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that training changes; with the config, all that resuming a run needs.

    Attributes:
        step: number of completed steps, int32.
        params: the model's parameters, float32.
        opt_state: the optimizer's state, which has moments of the trained parameters only.
        ema_params: exponential moving average of all parameters, or None. It holds the frozen ones
            too, so that it is a complete model in a checkpoint.
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
        loss: the function of logits and labels that is minimised.
        distillation: how a teacher's logits enter it, if there is a teacher.
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
    loss: Loss = dataclasses.field(default_factory=Loss)
    distillation: Distillation = dataclasses.field(default_factory=Distillation)


def step_key(seed: int, step: jax.Array | int) -> jax.Array:
    """Return the key from which all randomness of a step derives."""
    return jax.random.fold_in(jax.random.key(seed), step)


def split_step_key(key: jax.Array) -> jax.Array:
    """Split a step's key into the keys of the model, of erasing and of mixing."""
    return jax.random.split(key, 3)


def with_draws(
    batch: dict[str, Any], config: StepConfig, erase_key: jax.Array, mix_key: jax.Array
) -> dict[str, Any]:
    """Add the random draws of the augmentation on the device to a batch, for each row.

    Args:
        batch: `image` and `label`, the first rows of the global batch.
        config: settings of the step.
        erase_key, mix_key: random keys of the step.
    """
    batch_size, height, width, _ = batch["image"].shape
    if config.erasing.prob:
        batch = batch | {"erasing": row_keys(erase_key, batch_size)}
    if config.mixing.enabled:
        draws = draw_mixing(config.mixing, mix_key, batch_size, (height, width))
        batch = batch | {"mixing": draws}
    return batch


def augment(batch: dict[str, Any], config: StepConfig) -> tuple[jax.Array, jax.Array]:
    """Apply the augmentation that runs on the device to uint8 images and integer labels.

    Args:
        batch: any pairs of rows of a batch from `with_draws`.
        config: settings of the step.

    Returns:
        Images, float32 [B, H, W, channels], normalised, erased and mixed, and labels, float32
        [B, num_classes].
    """
    images = normalise(batch["image"], config.mean, config.std)
    labels = soft_labels(batch["label"], config.num_classes, config.label_smoothing)
    if config.erasing.prob:
        in_pairs = config.mixing.enabled
        images = erase(images, config.erasing, batch["erasing"], in_pairs=in_pairs)
    if config.mixing.enabled:
        images, labels = mix(images, labels, batch["mixing"])
    return images, labels


def make_train_step(
    model: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: StepConfig,
    trainable: nnx.filterlib.Filter = True,
    teacher: Predict | None = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Return the function (state, batch) → (next state, metrics).

    With a teacher it is (state, batch, teacher's parameters) → (next state, metrics).

    The batch has `image`, uint8 [B, H, W, channels], and `label`, int [B]. The metrics are float32
    scalars on the device: loss, accuracy, norm of the trained parameters' gradient and learning
    rate.

    Args:
        model: the model's structure.
        optimizer: updates the trained parameters.
        schedule: step → learning rate, for the metrics.
        config: settings of the step.
        trainable: an NNX filter that selects the trained parameters, by default all. Gradients of
            the others are not computed, and the step returns them unchanged.
        teacher: the teacher's (parameters, images) → logits, from which the model learns too.
    """

    def loss_fn(
        trained: Any, frozen: Any, batch: dict[str, Any], model_key: jax.Array, teacher_params: Any
    ) -> tuple[jax.Array, jax.Array]:
        images, labels = augment(batch, config)
        student = nnx.merge(model, nnx.State(trained), nnx.State(frozen))
        if teacher is None:
            logits = student(images, key=model_key)
        else:
            of_heads = student.separate_logits(images, key=model_key)
            logits = sum(of_heads[1:], of_heads[0]) / len(of_heads)
        accuracy = (logits.argmax(-1) == labels.argmax(-1)).mean(dtype=jnp.float32)
        if teacher is None:
            return mean_loss(logits, labels, config.loss), accuracy
        of_teacher = teacher(teacher_params, images)
        loss = distilled_loss(of_heads, labels, of_teacher, config.loss, config.distillation)
        return loss, accuracy

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

    def accumulated_grad_fn(
        trained: Any, frozen: Any, batch: dict[str, jax.Array], key: jax.Array, teacher_params: Any
    ) -> Any:
        """Return ((loss, accuracy), gradients of `trained`), means over the batch."""
        model_key, *augment_keys = split_step_key(key)
        # Drawn for the whole batch, so that the parts get the same draws.
        batch = with_draws(batch, config, *augment_keys)
        if config.accumulate == 1:
            return grad_fn(trained, frozen, batch, model_key, teacher_params)

        # Rows, or pairs of rows to be mixed, go to the parts in turn, so that each device's rows
        # stay on it.
        unit = 2 if config.mixing.enabled else 1

        def split(rows: jax.Array) -> jax.Array:
            units = rows.reshape(-1, config.accumulate, unit, *rows.shape[1:])
            return jnp.moveaxis(units, 1, 0).reshape(config.accumulate, -1, *rows.shape[1:])

        def add_part(total: Any, part_and_index: Any) -> tuple[Any, None]:
            part, index = part_and_index
            part_key = jax.random.fold_in(model_key, index)
            result = grad_fn(trained, frozen, part, part_key, teacher_params)
            return jax.tree.map(jnp.add, total, result), None

        parts = jax.tree.map(split, batch)
        zeros = jax.tree.map(jnp.zeros_like, ((0.0, 0.0), trained))
        total, _ = jax.lax.scan(add_part, zeros, (parts, jnp.arange(config.accumulate)))
        return jax.tree.map(lambda x: x / config.accumulate, total)

    def train_step(
        state: TrainState, batch: dict[str, jax.Array], teacher_params: Any = None
    ) -> tuple[TrainState, Metrics]:
        key = step_key(config.seed, state.step)
        trained, frozen = split_parameters(state.params, trainable)
        (loss, accuracy), gradients = accumulated_grad_fn(
            trained, frozen, batch, key, teacher_params
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
        trained = optax.apply_updates(trained, updates)
        ema_params = state.ema_params
        if ema_params is not None:
            average, frozen_average = split_parameters(ema_params, trainable)
            average = optax.incremental_update(trained, average, 1.0 - config.ema_decay)
            ema_params = merge_parameters(average, frozen_average)
        metrics = {
            "loss": loss,
            "accuracy": accuracy,
            "gradient_norm": optax.tree.norm(gradients),
            "learning_rate": schedule(state.step),
        }
        params = merge_parameters(trained, frozen)
        return TrainState(state.step + 1, params, opt_state, ema_params), metrics

    return train_step


def new_state(
    model: nnx.Module,
    optimizer: optax.GradientTransformation,
    *,
    trainable: nnx.filterlib.Filter = True,
    ema: bool,
) -> TrainState:
    """Return the state before the first step.

    Args:
        model: the model, newly initialised.
        optimizer: updates the trained parameters.
        trainable: an NNX filter that selects the trained parameters, by default all.
        ema: whether to keep an exponential moving average of the parameters.
    """
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(split_parameters(params, trainable)[0]),
        # A copy, because the same buffer cannot be donated twice.
        ema_params=jax.tree.map(jnp.copy, params) if ema else None,
    )
