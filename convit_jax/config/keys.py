"""The typed configuration: every key, its type, default and meaning, in one place.

A file in `configs/` starts from `template()`, an ml_collections `ConfigDict` with these keys, and
changes what its experiment needs; `--config.key=value` changes more. `resolve` turns the result
into the frozen `Config` that everything else reads, or says in one sentence what is wrong.

Durations are strings, "300 epochs" or "1500 steps", so that each is given in exactly one unit.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import ml_collections

from convit_jax import kernels, models
from convit_jax.config.data_keys import AugmentConfig, DataConfig
from convit_jax.config.typed import (
    as_config_dict,
    check_ranges,
    check_read,
    from_mapping,
    get,
    key,
    keys,
    without_unknown,
)
from convit_jax.data.images.decoding import check_channels
from convit_jax.data.images.randaugment import parse_randaugment
from convit_jax.errors import InputError
from convit_jax.models import Architecture
from convit_jax.values.durations import in_steps, parse_duration
from convit_jax.values.ranges import when

# Matrices decay; biases, norms, gates, the class token and absolute positions do not: 70 tensors
# of a ConViT decay, 110 do not, as in the released recipe on one device.
NO_DECAY = (r".*\.(bias|scale|gating)", r"cls_token|pos_embed")
# What "frozen GPSA" freezes (paper Table 3, f and g): the attention of GPSA layers, whole.
GPSA_ATTENTION = r"blocks\.{gpsa}\.attention\..*"
# A seed is 32 bits on the device: more would be those again.
SEEDS = 2**32
_SOME_IMAGES: dict[str, Any] = {"at_least": 1, "at_most": 2**20}
_SOME_TIME: dict[str, Any] = {"duration": True, "above": 0}


def _model_section() -> type:
    """A key for the model's name and one for each field of `Architecture`, with its range.

    They default to None, "as the named model has it". Image size and classes are left out: the
    data decide them.
    """
    decided_by_data = ("image_size", "num_classes")
    # Weights to start from have these parameters already.
    fresh = dict.fromkeys(("conv_init", "locality_strength"), (when("init_from", one_of=("",)),))
    overrides = [
        (
            f.name,
            f.type | None,
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


ModelConfig = _model_section()


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, its learning rate and what surrounds it."""

    learning_rate: float = key(
        5e-4,
        "peak learning rate for `learning_rate_batch` images; scales with the batch size",
        above=0,
    )
    learning_rate_batch: int = key(512, "batch size that `learning_rate` is meant for", at_least=1)
    warmup: str = key("5 epochs", "duration of the linear warm-up", duration=True)
    warmup_learning_rate: float = key(
        1e-6,
        "where the warm-up starts; does not scale",
        at_least=0,
        read_if=(when("optimizer.warmup", duration=True, above=0),),
    )
    min_learning_rate: float = key(1e-5, "where the cosine ends; does not scale", at_least=0)
    b1: float = key(0.9, "decay of AdamW's first moment", at_least=0, below=1)
    b2: float = key(0.999, "decay of AdamW's second moment", at_least=0, below=1)
    eps: float = key(1e-8, "added to the root of AdamW's second moment", above=0)
    weight_decay: float = key(0.05, "decoupled weight decay", at_least=0)
    no_decay: tuple[str, ...] = key(
        NO_DECAY,
        "regular expressions of parameters that do not decay; each must match some parameter",
        read_if=(when("optimizer.weight_decay", above=0),),
    )
    frozen: tuple[str, ...] = key(
        (),
        "regular expressions of parameters that are not trained; each must match some parameter; "
        "{gpsa} stands for the numbers of the GPSA layers",
        fixed=True,
    )
    layer_decay: float = key(
        1.0,
        "learning rate of a layer over that of the layer above it, for fine-tuning; 1: all alike",
        fixed=True,
        above=0,
        at_most=1,
    )
    schedule_every: str = key(
        "step",
        "how often the learning rate changes: each 'step', or each 'epoch'",
        one_of=("step", "epoch"),
    )
    schedule_lag: int = key(
        0,
        "epochs that the learning rate is late: 1 in the released code, which starts with two "
        "epochs of the smallest",
        at_least=0,
    )
    clip_norm: float = key(0.0, "largest global norm of the gradient; 0: no clipping", at_least=0)
    accumulate: int = key(1, "parts that a batch is computed in, to save memory", at_least=1)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How the devices share the work; the result is the same."""

    fsdp: int = key(
        1,
        "devices that parameters and optimizer state are spread over, to save memory; the batch is "
        "spread over all devices in any case",
        at_least=1,
    )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When the state is saved and which saves are kept."""

    every: str = key(
        "1 epochs", "interval between checkpoints, besides the last step's", **_SOME_TIME
    )
    keep_latest: int = key(2, "most recent checkpoints kept", at_least=1)
    keep_best: int = key(1, "checkpoints kept for the best evaluation accuracy", at_least=0)


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole experiment."""

    seed: int = key(
        0,
        "decides parameters, data order, augmentation and stochastic depth",
        fixed=True,
        at_least=0,
        below=SEEDS,
    )
    init_from: str = key(
        "",
        "weights to start from, anything that convit_jax.load_model takes; the head is replaced "
        "where the classes differ, absolute positions resampled where the grid does",
        fixed=True,
    )
    train_for: str = key("300 epochs", "duration of the training", **_SOME_TIME)
    keep_budget: bool = key(
        False,
        "count train_for's epochs on the whole dataset: a fraction f of it is then seen 1/f times "
        "as often (paper Table 2)",
    )
    batch_size: int = key(1024, "images a step, over all devices", fixed=True, **_SOME_IMAGES)
    eval_every: str = key(
        "1 epochs", "interval between evaluations, besides the last step's", **_SOME_TIME
    )
    eval_batch_size: int = key(1024, "images an evaluation step, over all devices", **_SOME_IMAGES)
    attention_images: int = key(
        1024,
        "evaluation images that each evaluation measures gates and non-locality on (paper Fig. 5, "
        "6); 0: none",
        at_least=0,
    )
    log_every: str = key("50 steps", "interval between lines of training metrics", **_SOME_TIME)
    profile_at: int = key(0, "first of five steps to profile for TensorBoard; 0: none", at_least=0)
    label_smoothing: float = key(
        0.1, "share of the label spread over all classes", at_least=0, below=1
    )
    ema_decay: float = key(
        0.0,
        "decay, a step, of the parameters' running average, then also what is evaluated; 0: off",
        fixed=True,
        at_least=0,
        below=1,
    )
    attention: str = key(
        "auto",
        "form of the attention's arithmetic: 'xla', 'pallas' (the fused TPU kernel; slow "
        "elsewhere), 'cudnn' (on NVIDIA's GPUs, in bfloat16) or 'auto' (the kernel on TPUs, cuDNN "
        "on GPUs since Hopper)",
        one_of=kernels.FORMS,
    )
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)


def duration_in_steps(config: Config, name: str, steps_per_epoch: float) -> int:
    """The duration that a key gives, in steps.

    Raises:
        InputError: the key's value is no duration, or less than half a step where it takes one.
    """
    duration = get(config, name)
    steps = in_steps(duration, f"config.{name}", steps_per_epoch)
    if not steps and keys(Config)[name].metadata["range"].above == 0:
        raise InputError(
            f"config.{name}='{duration}' is less than half a step, an epoch being "
            f"{steps_per_epoch:g}: expected '1 steps' or more"
        )
    return steps


def template() -> ml_collections.ConfigDict:
    """Every key at its default, for a config file to change. Unknown keys are errors."""
    return as_config_dict(Config())


def resolve(values: Mapping[str, Any], undecided: Collection[str] = ()) -> Config:
    """Checks names, types and ranges, and freezes the configuration.

    Args:
        values: a nested mapping or ConfigDict; keys that it leaves out have their defaults.
        undecided: keys that are still to be set, so that others may depend on them already.

    Raises:
        InputError: an unknown key, a value of a wrong type, a value that makes no sense, or one
            that would not be read.
    """
    config = from_mapping(Config, values)
    check_ranges(config)
    _check_together(config)
    architecture(config, num_classes=2)
    check_read(config, undecided)
    return config


def as_saved(values: Mapping[str, Any]) -> tuple[Config, list[str]]:
    """A configuration that a run left, of this version or another: its types alone count.

    Returns:
        The configuration, and the keys that this version does not have.

    Raises:
        InputError: a value of a wrong type.
    """
    known, unknown = without_unknown(Config, values)
    return from_mapping(Config, known), unknown


def _check_together(config: Config) -> None:
    """What several keys must be together; what each must be stands with it."""
    d, a, o = config.data, config.augment, config.optimizer
    height, width = d.image_size * 2 if len(d.image_size) == 1 else d.image_size
    for holds, name, expected in (
        (
            bool(d.eval) != bool(d.holdout),
            "data.holdout",
            "a share such as 0.1 where data.eval is '', and 0 where it names examples",
        ),
        (config.batch_size % o.accumulate == 0, "optimizer.accumulate", "a divisor of batch_size"),
        (
            a.crop != "pad" or a.crop_padding < min(height, width),
            "augment.crop_padding",
            f"less than the image's side, {min(height, width)}",
        ),
    ):
        if not holds:
            raise InputError(f"config.{name}={get(config, name)!r}: expected {expected}")
    if a.randaugment:
        parse_randaugment(a.randaugment)
    # A default is no wish, and a run of a few steps to try something out is: that is only logged.
    warmup, length = parse_duration(o.warmup), parse_duration(config.train_for)
    if o.warmup != OptimizerConfig.warmup and warmup[1] == length[1] and warmup > length:
        raise InputError(
            f"config.optimizer.warmup='{o.warmup}' is longer than the run, "
            f"config.train_for='{config.train_for}'"
        )


def architecture(config: Config, num_classes: int) -> Architecture:
    """The model that a config describes, for data of `num_classes` classes.

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
