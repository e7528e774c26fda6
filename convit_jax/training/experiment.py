"""A config put together: the model, the optimizer and the steps that train it.

Everything here is shapes and functions: nothing is read and no array is made, so the same
experiment can be run, planned for another machine, or timed.
"""

import dataclasses
import logging
import math
from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import nnx
from jax.sharding import Mesh

from convit_jax import models
from convit_jax.config import Config, architecture, duration_in_steps
from convit_jax.data import EpochOrder, EvalTransform, TrainTransform
from convit_jax.data.mixing import Erasing, Mixing
from convit_jax.errors import InputError
from convit_jax.evaluation.step import make_eval_step
from convit_jax.kernels import Form, attention_for
from convit_jax.training.optimizer import learning_rate, make_optimizer
from convit_jax.training.step import (
    Metrics,
    StepConfig,
    TrainState,
    make_train_step,
    new_state,
)

log = logging.getLogger(__name__)

# Steps are counted in an int32 on the devices.
MOST_STEPS = 2**31 - 1
PROFILED_STEPS = 5


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a run is made of.

    Attributes:
        config: the configuration it was made from.
        architecture: the model's.
        order: which example stands where.
        train_transform, eval_transform: pixels → the uint8 image that goes to the device.
        step_config: what the steps know, the device's part of augmentation among it.
        total_steps: length of the run.
        eval_every, checkpoint_every, log_every: in steps.
        graph: the model's structure.
        init_state: () → state before the first step; a function of the seed, for `jax.jit`.
        train_step: (state, batch) → (state, metrics).
        eval_step: (params, batch) → sums of metrics.
    """

    config: Config
    architecture: models.Architecture
    order: EpochOrder
    train_transform: TrainTransform
    eval_transform: EvalTransform
    step_config: StepConfig
    total_steps: int
    eval_every: int
    checkpoint_every: int
    log_every: int
    graph: nnx.GraphDef
    init_state: Callable[[], TrainState]
    train_step: Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Metrics]]
    eval_step: Callable[[Any, dict[str, jax.Array]], Metrics]

    def abstract_state(self) -> TrainState:
        """Shapes and types of the state."""
        return jax.eval_shape(self.init_state)


def make_experiment(
    config: Config,
    *,
    num_examples: int,
    num_classes: int,
    mesh: Mesh | None = None,
    attention: Form | None = None,
) -> Experiment:
    """Puts a config together for a dataset of the given size.

    Args:
        config: the configuration.
        num_examples, num_classes: of the training data.
        mesh: the devices that the steps will be compiled for; None for the default one.
        attention: the form of attention, where it is not the config's.

    Raises:
        InputError: the config asks for something that does not fit together, or for a form of
            attention that the devices cannot have.
    """
    a, augment = architecture(config, num_classes), config.augment
    order = EpochOrder(num_examples, config.batch_size, config.seed, config.augment.repeats)

    def steps(key: str) -> int:
        return duration_in_steps(config, key, order.steps_per_epoch)

    whole_epoch = order.steps_per_epoch / (config.data.fraction if config.keep_budget else 1)
    total_steps = duration_in_steps(config, "train_for", whole_epoch)
    warmup_steps = steps("optimizer.warmup")
    _check_length(config, total_steps, warmup_steps)

    attend = attention_for(mesh, attention or config.attention)
    if mesh is not None:
        attend.check(a.dtype, a.head_dim, math.prod(a.grid))

    def make_model() -> models.VisionTransformer:
        return models.build(a, config.seed, attend)

    graph, abstract_params = nnx.split(nnx.eval_shape(make_model))
    schedule = learning_rate(config, total_steps, warmup_steps, order.steps_per_epoch)
    optimizer: optax.GradientTransformation = make_optimizer(
        config.optimizer, schedule, nnx.to_pure_dict(abstract_params)
    )
    step_config = StepConfig(
        seed=config.seed,
        num_classes=num_classes,
        mean=config.data.mean,
        std=config.data.std,
        label_smoothing=config.label_smoothing,
        accumulate=config.optimizer.accumulate,
        ema_decay=config.ema_decay,
        erasing=Erasing(augment.erase, augment.erase_area, augment.erase_ratio),
        mixing=Mixing(augment.mixup, augment.cutmix, augment.mix_prob, augment.mix_switch_prob),
    )
    return Experiment(
        config=config,
        architecture=a,
        order=order,
        train_transform=_train_transform(config, a),
        eval_transform=EvalTransform(a.image_size, a.in_channels, config.data.eval_crop),
        step_config=step_config,
        total_steps=total_steps,
        eval_every=steps("eval_every"),
        checkpoint_every=steps("checkpoint.every"),
        log_every=steps("log_every"),
        graph=graph,
        init_state=lambda: new_state(make_model(), optimizer, ema=bool(config.ema_decay)),
        train_step=make_train_step(graph, optimizer, schedule, step_config),
        eval_step=make_eval_step(graph, config.data.mean, config.data.std),
    )


def _check_length(config: Config, total_steps: int, warmup_steps: int) -> None:
    """Refuses what a run of so many steps cannot have, and says what it will not reach."""
    if total_steps > MOST_STEPS:
        raise InputError(
            f"config.train_for='{config.train_for}' is {total_steps:,} steps: expected at most "
            f"{MOST_STEPS}"
        )
    last = total_steps - PROFILED_STEPS + 1
    if config.profile_at and config.profile_at > last:
        expected = f"1 to {last}, or 0 for none" if last > 0 else "0, for none"
        raise InputError(
            f"config.profile_at={config.profile_at}: {PROFILED_STEPS} steps are profiled and the "
            f"run has {total_steps} steps: expected {expected}"
        )
    if warmup_steps > total_steps:
        log.warning(
            "the warm-up of %d steps is longer than the run of %d: the learning rate does not "
            "reach config.optimizer.learning_rate",
            warmup_steps,
            total_steps,
        )


def _train_transform(config: Config, a: models.Architecture) -> TrainTransform:
    """The keys of the augment section that are the host's work; the device does the rest."""
    fields = {field.name for field in dataclasses.fields(TrainTransform)}
    augment = dataclasses.asdict(config.augment)
    host = {name: value for name, value in augment.items() if name in fields}
    return TrainTransform(a.image_size, a.in_channels, **host)
