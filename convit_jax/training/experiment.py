"""Building an experiment from a config: the model, the optimizer and the steps that train it.

Everything here is shapes and functions. No data is read and no array is created, so the same
experiment can be run, planned for another machine, or timed.
"""

import dataclasses
import logging
import math
from collections.abc import Callable

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
from convit_jax.training.distillation import Distillation
from convit_jax.training.losses import Loss
from convit_jax.training.optimizer import learning_rate, make_optimizer, trainable_filter
from convit_jax.training.parts import num_parts
from convit_jax.training.step import Metrics, StepConfig, TrainState, make_train_step, new_state
from convit_jax.weights.teachers import Teacher

log = logging.getLogger(__name__)

# The devices count steps in an int32.
MAX_STEPS = 2**31 - 1
NUM_PROFILED_STEPS = 5


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The components of a run.

    Attributes:
        config: the configuration.
        architecture: the architecture of the model.
        order: the order of the examples in each epoch.
        train_transform, eval_transform: pixels → the uint8 image that goes to the device.
        step_config: settings of the training step, including augmentation on the device.
        total_steps: length of the run.
        eval_every, checkpoint_every, log_every: intervals in steps.
        graph: the model's structure.
        trainable: an NNX filter that selects the parameters which are trained.
        init_state: () → state before the first step; a function of the seed, for `jax.jit`.
        train_step: (state, batch) → (state, metrics).
        eval_step: (params, batch) → sums of metrics.
        teacher: the teacher of a distillation, whose parameters are then the third argument of
            both steps; None without one.
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
    trainable: nnx.filterlib.Filter
    init_state: Callable[[], TrainState]
    train_step: Callable[..., tuple[TrainState, Metrics]]
    eval_step: Callable[..., Metrics]
    teacher: Teacher | None = None

    def abstract_state(self) -> TrainState:
        """Return the shapes and types of the state."""
        return jax.eval_shape(self.init_state)


def make_experiment(
    config: Config,
    *,
    num_examples: int,
    num_classes: int,
    class_weights: tuple[float, ...] = (),
    mesh: Mesh | None = None,
    attention: Form | None = None,
    teacher: Teacher | None = None,
) -> Experiment:
    """Build the experiment of a config for a dataset of the given size.

    Args:
        config: the configuration.
        num_examples, num_classes: size of the training data.
        class_weights: weights of the classes in the loss, if `class_weights_of` counted any.
        mesh: the devices that the steps will be compiled for; None for the default one.
        attention: the form of attention, to override the config's.
        teacher: the config's teacher, from `open_config_teacher`. Without it, an experiment with a
            teacher cannot be placed on devices.

    Raises:
        InputError: values of the config contradict each other, or the devices do not support the
            form of attention.
    """
    _check_class_weights(config, num_classes)
    a, augment = architecture(config, num_classes), config.augment
    fill_batches = config.keep_budget and config.data.fraction < 1
    order = EpochOrder(num_examples, config.batch_size, config.seed, augment.repeats, fill_batches)

    def steps(key: str) -> int:
        return duration_in_steps(config, key, order.steps_per_epoch)

    full_epoch: float = order.steps_per_epoch
    if config.keep_budget:
        # Less than 1 if a batch has several epochs of the fraction.
        full_epoch = min(full_epoch, num_examples / config.batch_size) / config.data.fraction
    total_steps = duration_in_steps(config, "train_for", full_epoch)
    warmup_steps = steps("optimizer.warmup")
    _check_length(config, total_steps, warmup_steps)

    attend = attention_for(mesh, attention or config.attention)
    if mesh is not None:
        attend.check(a.dtype, a.head_dim, math.prod(a.grid))

    def make_model() -> models.VisionTransformer:
        return models.build(a, config.seed, attend)

    graph, abstract_params = nnx.split(nnx.eval_shape(make_model))
    params = nnx.to_pure_dict(abstract_params)
    trainable = trainable_filter(params, config.optimizer.frozen)
    schedule = learning_rate(config, total_steps, warmup_steps, order.steps_per_epoch)
    optimizer: optax.GradientTransformation = make_optimizer(config.optimizer, schedule, params)
    mixing = Mixing(
        augment.mixup, augment.cutmix, augment.mix_prob, augment.mix_switch_prob, augment.mix_group
    )
    step_config = StepConfig(
        seed=config.seed,
        num_classes=num_classes,
        mean=config.data.mean,
        std=config.data.std,
        label_smoothing=config.label_smoothing,
        loss=Loss(config.loss, config.loss_threshold, class_weights or config.class_weights),
        accumulate=num_parts(
            config.optimizer.accumulate, config.batch_size, a, mesh, pairs=mixing.enabled
        ),
        ema_decay=config.ema_decay,
        erasing=Erasing(augment.erase, augment.erase_area, augment.erase_ratio),
        mixing=mixing,
        distillation=Distillation.of(config.distill),
    )
    predict = None if teacher is None else teacher.predict
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
        trainable=trainable,
        init_state=lambda: new_state(
            make_model(), optimizer, trainable=trainable, ema=bool(config.ema_decay)
        ),
        train_step=make_train_step(graph, optimizer, schedule, step_config, trainable, predict),
        eval_step=make_eval_step(graph, config.data.mean, config.data.std, teacher=predict),
        teacher=teacher,
    )


def _check_class_weights(config: Config, num_classes: int) -> None:
    count = len(config.class_weights)
    if count not in (0, num_classes):
        raise InputError(
            f"config.class_weights has {count} values: expected {num_classes}, one for each class "
            "in the order of the labels"
        )


def _check_length(config: Config, total_steps: int, warmup_steps: int) -> None:
    """Check that the run is not too long, nor too short for its profile and warm-up."""
    if total_steps > MAX_STEPS:
        raise InputError(
            f"config.train_for='{config.train_for}' is {total_steps:,} steps: expected at most "
            f"{MAX_STEPS}"
        )
    last = total_steps - NUM_PROFILED_STEPS + 1
    if config.profile_at and config.profile_at > last:
        expected = f"1 to {last}, or 0 for none" if last > 0 else "0, for none"
        raise InputError(
            f"config.profile_at={config.profile_at}: {NUM_PROFILED_STEPS} steps are profiled and "
            f"the run has {total_steps} steps: expected {expected}"
        )
    if warmup_steps > total_steps:
        log.warning(
            "the warm-up of %d steps is longer than the run of %d: the learning rate does not "
            "reach config.optimizer.learning_rate",
            warmup_steps,
            total_steps,
        )


def _train_transform(config: Config, a: models.Architecture) -> TrainTransform:
    """Return the part of the augmentation that the host does; the device does the rest."""
    fields = {field.name for field in dataclasses.fields(TrainTransform)}
    augment = dataclasses.asdict(config.augment)
    host_options = {name: value for name, value in augment.items() if name in fields}
    return TrainTransform(a.image_size, a.in_channels, **host_options)
