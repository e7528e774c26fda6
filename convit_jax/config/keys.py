"""The typed configuration: every key, its type, default and meaning, in one place.

A file in `configs/` starts from `template()`, an ml_collections `ConfigDict` with these keys, and
changes what its experiment needs; `--config.key=value` changes more. `resolve` checks the result
and returns the frozen `Config` that everything else reads.

Durations are strings, "300 epochs" or "1500 steps", so that each is given in exactly one unit.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from convit_jax import kernels, models
from convit_jax.config.data_keys import FROM_0_BELOW_1, AugmentConfig, DataConfig
from convit_jax.config.distill_keys import DistillConfig
from convit_jax.config.optimizer_keys import OptimizerConfig
from convit_jax.config.typed import (
    as_config_dict,
    check_ranges,
    check_read,
    fixed_key,
    from_mapping,
    get,
    key,
    keys,
)
from convit_jax.data.images.decoding import check_channels
from convit_jax.data.images.randaugment import parse_randaugment
from convit_jax.errors import InputError
from convit_jax.models import Architecture
from convit_jax.values.durations import in_steps, parse_duration
from convit_jax.values.ranges import when

LOSSES = ("softmax", "binary")
TRACKING = ("none", "wandb", "mlflow")
# Seeds have 32 bits on the device; larger ones would repeat them.
SEEDS = 2**32
_SOME_IMAGES: dict[str, Any] = {"at_least": 1, "at_most": 2**20}
_SOME_TIME: dict[str, Any] = {"duration": True, "above": 0}


def _model_section() -> type:
    """Return a section with the model's name and a key for each field of `Architecture`.

    The default None means "as the named model". Image size and number of classes are left out,
    since they depend on the data.
    """
    decided_by_data = ("image_size", "num_classes")
    # Pretrained weights replace the parameters that these keys initialise.
    initial = ("conv_init", "init", "locality_strength")
    fresh = dict.fromkeys(initial, (when("init_from", one_of=("",)),))
    overrides = [
        (
            f.name,
            _or_none(f.type),
            key(
                None,
                f.metadata["help"],
                fixed=f.name != "remat",
                read_if=fresh.get(f.name, ()),
                **vars(f.metadata["range"]),
            ),
        )
        for f in dataclasses.fields(Architecture)
        if f.name not in decided_by_data
    ]
    name = ("name", str, key("convit_tiny", "one of convit_jax.list_models()", fixed=True))
    return dataclasses.make_dataclass("ModelConfig", [name, *overrides], frozen=True)


def _or_none(kind: Any) -> Any:
    return kind | None


if TYPE_CHECKING:
    ModelConfig: TypeAlias = Any  # its fields are those of `Architecture`, made at run time
else:
    ModelConfig = _model_section()


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How the work is divided among devices; the result does not depend on it."""

    fsdp: int = key(
        1,
        "devices over which parameters and optimizer state are sharded, to save memory; the batch "
        "is always sharded over all devices",
        at_least=1,
    )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When the state is saved and which checkpoints are kept."""

    every: str = key(
        "1 epochs", "interval between checkpoints; the last step is always saved", **_SOME_TIME
    )
    keep_latest: int = key(2, "most recent checkpoints kept", at_least=1)
    keep_best: int = key(1, "checkpoints kept for the best evaluation accuracy", at_least=0)


@dataclasses.dataclass(frozen=True)
class EarlyStoppingConfig:
    """When a run ends before `train_for` because its evaluations no longer improve."""

    patience: int = key(
        0,
        "evaluations in a row that do not exceed the best accuracy, after which the run ends; 0: "
        "never",
        at_least=0,
    )
    min_delta: float = key(
        0.0,
        "by how much an accuracy must exceed the best one to count, as a share of the images",
        **FROM_0_BELOW_1,
        read_if=(when("early_stopping.patience", above=0),),
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """An experiment."""

    seed: int = fixed_key(
        0,
        "seed of parameters, data order, augmentation and stochastic depth",
        at_least=0,
        below=SEEDS,
    )
    init_from: str = fixed_key(
        "",
        "weights to start from, anything that convit_jax.load_model takes; the head is replaced "
        "if the classes differ, absolute positions are resampled if the grid differs",
    )
    train_for: str = key("300 epochs", "duration of the training", **_SOME_TIME)
    keep_budget: bool = key(
        False,
        "count train_for's epochs on the whole dataset: a fraction f of it is then seen 1/f times "
        "as often (paper Table 2)",
    )
    batch_size: int = fixed_key(1024, "images a step, over all devices", **_SOME_IMAGES)
    eval_every: str = key(
        "1 epochs", "interval between evaluations; the last step is always evaluated", **_SOME_TIME
    )
    eval_batch_size: int = key(1024, "images an evaluation step, over all devices", **_SOME_IMAGES)
    attention_images: int = key(
        1024,
        "evaluation images on which each evaluation measures gates and non-locality (paper Fig. 5, "
        "6); 0: none",
        at_least=0,
    )
    log_every: str = key("50 steps", "interval between training metrics in the log", **_SOME_TIME)
    tracking: str = key(
        "none",
        "service that also gets the metrics: 'wandb' (Weights & Biases) or 'mlflow', whose own "
        "variables say where it is",
        one_of=TRACKING,
    )
    profile_at: int = key(0, "first of five steps to profile for TensorBoard; 0: none", at_least=0)
    label_smoothing: float = key(0.1, "share of a label spread over all classes", **FROM_0_BELOW_1)
    loss: str = key(
        "softmax",
        "'softmax' cross-entropy, or 'binary': a sigmoid's cross-entropy for each class, averaged "
        "over the classes (Wightman et al. 2021)",
        one_of=LOSSES,
    )
    loss_threshold: float | None = key(
        None,
        "the binary loss takes mixed and smoothed labels above it as 1, the others as 0; None: as "
        "they are",
        **FROM_0_BELOW_1,
        read_if=(when("loss", one_of=("binary",)),),
    )
    class_weights: tuple[float, ...] = key(
        (), "weight of each class in the loss, in the order of the labels; (): all 1", above=0
    )
    balance_classes: bool = key(
        False,
        "weigh each class in the loss by the inverse of its frequency: n / (k n_c) for n_c of n "
        "training examples and k classes",
    )
    ema_decay: float = fixed_key(
        0.0,
        "decay per step of the parameters' running average, which is then evaluated; 0: off",
        **FROM_0_BELOW_1,
    )
    attention: str = key(
        "auto",
        "implementation of attention: 'xla', 'pallas' (the fused TPU kernel; slow elsewhere), "
        "'cudnn' (NVIDIA GPUs, in bfloat16) or 'auto' (the kernel on TPUs, cuDNN on GPUs since "
        "Hopper)",
        one_of=kernels.FORMS,
    )
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    distill: DistillConfig = dataclasses.field(default_factory=DistillConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    early_stopping: EarlyStoppingConfig = dataclasses.field(default_factory=EarlyStoppingConfig)


def duration_in_steps(config: Config, name: str, steps_per_epoch: float) -> int:
    """Return the duration of a key in steps.

    Raises:
        InputError: the value is not a duration, or less than half a step where 0 is not allowed.
    """
    duration = get(config, name)
    steps = in_steps(duration, f"config.{name}", steps_per_epoch)
    if not steps and keys(Config)[name].metadata["range"].above == 0:
        raise InputError(
            f"config.{name}='{duration}' is less than half a step, as an epoch has "
            f"{steps_per_epoch:g}: expected '1 steps' or more"
        )
    return steps


def template() -> Any:
    """Return every key at its default, for a config file to change.

    Returns:
        A locked `ml_collections.ConfigDict`: unknown keys are errors. Its attributes have the types
        of `Config`'s, which a type checker cannot see.
    """
    return as_config_dict(Config())


def resolve(values: Mapping[str, Any], undecided: Collection[str] = ()) -> Config:
    """Check names, types and ranges, and freeze the configuration.

    Args:
        values: a nested mapping or ConfigDict; missing keys have their defaults.
        undecided: keys that will be set later, on which others may depend already.

    Raises:
        InputError: an unknown key, a value of a wrong type or out of range, or one that would not
            be read.
    """
    config = from_mapping(Config, values)
    check_ranges(config)
    _check_together(config)
    architecture(config, num_classes=2)
    check_read(config, undecided)
    return config


def as_saved(values: Mapping[str, Any]) -> tuple[Config, list[str]]:
    """Read the configuration that a run saved, by this version or another; only types are checked.

    Returns:
        The configuration, and the keys that are unknown to this version.

    Raises:
        InputError: a value of a wrong type.
    """
    unknown: list[str] = []
    return from_mapping(Config, values, unknown), unknown


def _check_together(config: Config) -> None:
    """Check conditions on several keys; those on one key stand with its declaration."""
    data, augment, optimizer = config.data, config.augment, config.optimizer

    def check(holds: bool, name: str, expected: str) -> None:
        if not holds:
            raise InputError(f"config.{name}={get(config, name)!r}: expected {expected}")

    expected = "a share such as 0.1 if data.eval is '', and 0 if it names examples"
    check(bool(data.eval) != bool(data.holdout), "data.holdout", expected)
    divides = config.batch_size % (optimizer.accumulate or 1) == 0
    check(divides, "optimizer.accumulate", "a divisor of batch_size, or 0 for the fastest")
    side = min(data.image_size)
    excluded = not (config.balance_classes and config.class_weights)
    check(excluded, "class_weights", "() with config.balance_classes, which sets the weights")
    fits = augment.crop not in ("pad", "simple") or augment.crop_padding < side
    check(fits, "augment.crop_padding", f"less than the image's side, {side}")
    _check_mix_group(config)
    if augment.randaugment:
        parse_randaugment(augment.randaugment)
        expected = "False, or '' for config.augment.randaugment, which it replaces"
        check(not augment.three_augment, "augment.three_augment", expected)
    # With the default warm-up a short run is allowed, to try something out; a warning is logged.
    warmup, length = parse_duration(optimizer.warmup), parse_duration(config.train_for)
    is_default = optimizer.warmup == OptimizerConfig.warmup
    if warmup and length and warmup[1] == length[1] and warmup > length and not is_default:
        raise InputError(
            f"config.optimizer.warmup='{optimizer.warmup}' is longer than the run, "
            f"config.train_for='{config.train_for}'"
        )


def _check_mix_group(config: Config) -> None:
    """Check that groups of rows that share a draw of mixup or CutMix fill the batch, in pairs."""
    group, batch_size = config.augment.mix_group, config.batch_size
    if group % 2 == 0 and (group >= batch_size or not group or batch_size % group == 0):
        return
    divisors = [size for size in range(2, batch_size + 1, 2) if batch_size % size == 0]
    nearest = [size for size in divisors if size < group][-1:]
    nearest += [size for size in divisors if size > group][:1]
    raise InputError(
        f"config.augment.mix_group={group}: expected an even divisor of batch_size, {batch_size}, "
        f"or 0 for the whole batch; the nearest: {' and '.join(map(str, nearest or [0]))}"
    )


def architecture(config: Config, num_classes: int) -> Architecture:
    """Return the model that a config describes, for data of `num_classes` classes.

    Raises:
        InputError: an unknown model, or a field that is out of range or that it would not read.
    """
    overrides = {k: v for k, v in dataclasses.asdict(config.model).items() if v is not None}
    name = overrides.pop("name")
    size = config.data.image_size
    size = size * 2 if len(size) == 1 else size
    a = models.architecture(name, num_classes=num_classes, image_size=size, **overrides)
    check_channels(a.in_channels, "config.model.in_channels")
    for name in ("mean", "std"):
        if len(getattr(config.data, name)) != a.in_channels:
            raise InputError(
                f"config.data.{name}={getattr(config.data, name)}: expected {a.in_channels} "
                "values, one for each channel of the images (config.model.in_channels)"
            )
    return a
