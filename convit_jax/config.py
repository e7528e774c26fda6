"""The typed configuration: every key, its type, default and meaning, in one place.

A file in `configs/` starts from `template()`, an ml_collections `ConfigDict` with these keys, and
changes what its experiment needs; `--config.key=value` changes more. `resolve` turns the result
into the frozen `Config` that everything else reads, or says in one sentence what is wrong.

Durations are strings, "300 epochs" or "1500 steps", so that each is given in exactly one unit.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections

from convit_jax import models
from convit_jax.config_rules import check_ranges
from convit_jax.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from convit_jax.durations import in_steps
from convit_jax.errors import InputError
from convit_jax.models import Architecture
from convit_jax.typed_config import as_config_dict, from_mapping, get, key

# Matrices decay; biases, norms, gates, the class token and absolute positions do not: 70 tensors
# of a ConViT decay, 110 do not, as in the released recipe on one device.
NO_DECAY = (r".*\.(bias|scale|gating)", r"cls_token|pos_embed")


def _model_section() -> type:
    """A key for the model's name and one for each field of `Architecture`.

    They default to None, "as the named model has it". Image size and classes are left out: the
    data decide them.
    """
    decided_by_data = ("image_size", "num_classes")
    overrides = [
        (f.name, f.type | None, key(None, f.metadata["help"], fixed=f.name != "remat"))
        for f in dataclasses.fields(Architecture)
        if f.name not in decided_by_data
    ]
    name = ("name", str, key("convit_tiny", "one of convit_jax.list_models()", fixed=True))
    return dataclasses.make_dataclass("ModelConfig", [name, *overrides], frozen=True)


ModelConfig = _model_section()


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which images, and how they are read."""

    train: str = key(
        "digits:train",
        "training examples: tfds:NAME:SPLIT[:DATA_DIR], folder:PATH or digits:train",
        fixed=True,
    )
    eval: str = key("digits:test", "examples to evaluate on, named likewise")
    fraction: float = key(
        1.0, "share of each class's training examples that is used (paper Table 2)", fixed=True
    )
    holdout: float = key(
        0.0,
        "share of each class's training examples that is kept from training and evaluated on, "
        "where data.eval is ''",
        fixed=True,
    )
    fraction_choice: str = key(
        "first",
        "which ones: 'first' int(n f) of each class by file name, as in the paper, or 'random' "
        "by the seed",
        fixed=True,
    )
    classes: int = key(0, "use only the first so many classes; 0: all", fixed=True)
    image_size: tuple[int, ...] = key(
        (224,), "(side,) or (height, width) of the images the model sees, in pixels", fixed=True
    )
    eval_crop: float = key(
        0.875, "share of the side that evaluation keeps, of the image scaled to fit: 224 of 256"
    )
    mean: tuple[float, ...] = key(
        IMAGENET_MEAN, "subtracted from images scaled to [0, 1], for each channel", fixed=True
    )
    std: tuple[float, ...] = key(IMAGENET_STD, "then divided by, for each channel", fixed=True)
    max_broken: float = key(
        0.001, "share of the examples that may be unreadable before the run stops"
    )
    exif_rotation: str = key(
        "auto",
        "whether photographs are turned upright as their EXIF says: 'honour', 'ignore', or 'auto': "
        "those of folder: are, those of tfds: are not, as published accuracies were measured",
    )
    num_workers: int = key(
        0, "processes that read and augment; 0: a thread of this one, -1: one for each core"
    )
    prefetch_batches: int = key(2, "batches prepared ahead")


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """What happens to a training image; the defaults only scale it."""

    repeats: int = key(
        1,
        "repeated augmentation: views of each image, while an epoch keeps its number of steps",
        fixed=True,
    )
    crop: str = key(
        "none",
        "'random_resized' (a random part, scaled), 'pad' (moved a little, for small images) or "
        "'none' (scaled as a whole)",
    )
    crop_scale: tuple[float, ...] = key((0.08, 1.0), "share of the area that a random part has")
    crop_ratio: tuple[float, ...] = key((3 / 4, 4 / 3), "its width over its height")
    crop_padding: int = key(4, "pixels that 'pad' may move an image, each way")
    flip: float = key(0.0, "chance of a horizontal flip")
    randaugment: str = key(
        "", "RandAugment in timm's notation, 'rand-m9-mstd0.5-inc1'; '' for none"
    )
    rotate: float = key(0.0, "largest rotation either way, in degrees")
    zoom: float = key(0.0, "largest change of scale either way, as a share: 0.1 is 0.9 to 1.1")
    shear: float = key(0.0, "largest shear either way, in degrees")
    translate: float = key(0.0, "largest shift either way and axis, as a share of the side")
    erase: float = key(0.0, "chance of random erasing, after normalisation, by noise")
    erase_area: tuple[float, ...] = key((0.02, 1 / 3), "share of the area that is erased")
    erase_ratio: tuple[float, ...] = key((0.3, 1 / 0.3), "its height over its width")
    mixup: float = key(0.0, "α of mixup's Beta(α, α); 0: none")
    cutmix: float = key(0.0, "α of CutMix's Beta(α, α); 0: none")
    mix_prob: float = key(1.0, "chance that a batch is mixed")
    mix_switch_prob: float = key(0.5, "chance of CutMix rather than mixup, where there are both")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, its learning rate and what surrounds it."""

    learning_rate: float = key(
        5e-4, "peak learning rate for `learning_rate_batch` images; scales with the batch size"
    )
    learning_rate_batch: int = key(512, "batch size that `learning_rate` is meant for")
    warmup: str = key("5 epochs", "duration of the linear warm-up")
    warmup_learning_rate: float = key(1e-6, "where the warm-up starts; does not scale")
    min_learning_rate: float = key(1e-5, "where the cosine ends; does not scale")
    b1: float = key(0.9, "decay of AdamW's first moment")
    b2: float = key(0.999, "decay of AdamW's second moment")
    eps: float = key(1e-8, "added to the root of AdamW's second moment")
    weight_decay: float = key(0.05, "decoupled weight decay")
    no_decay: tuple[str, ...] = key(
        NO_DECAY,
        "regular expressions of parameters that do not decay; each must match some parameter",
    )
    frozen: tuple[str, ...] = key(
        (),
        "regular expressions of parameters that are not trained; each must match some parameter",
        fixed=True,
    )
    layer_decay: float = key(
        1.0,
        "learning rate of a layer over that of the layer above it, for fine-tuning; 1: all alike",
        fixed=True,
    )
    schedule_every: str = key(
        "step", "how often the learning rate changes: each 'step', or each 'epoch'"
    )
    schedule_lag: int = key(
        0,
        "epochs that the learning rate is late: 1 in the released code, which starts with two "
        "epochs of the smallest",
    )
    clip_norm: float = key(0.0, "largest global norm of the gradient; 0: no clipping")
    accumulate: int = key(1, "parts that a batch is computed in, to save memory")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How the devices share the work; the result is the same."""

    fsdp: int = key(
        1,
        "devices that parameters and optimizer state are spread over, to save memory; the batch is "
        "spread over all devices in any case",
    )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When the state is saved and which saves are kept."""

    every: str = key("1 epochs", "interval between checkpoints, besides the last step's")
    keep_latest: int = key(2, "most recent checkpoints kept")
    keep_best: int = key(1, "checkpoints kept for the best evaluation accuracy")


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole experiment."""

    seed: int = key(
        0, "decides parameters, data order, augmentation and stochastic depth", fixed=True
    )
    init_from: str = key(
        "",
        "weights to start from, anything that convit_jax.load_model takes; the head is replaced "
        "where the classes differ, absolute positions resampled where the grid does",
        fixed=True,
    )
    train_for: str = key("300 epochs", "duration of the training")
    keep_budget: bool = key(
        False,
        "count train_for's epochs on the whole dataset: a fraction f of it is then seen 1/f times "
        "as often (paper Table 2)",
    )
    batch_size: int = key(1024, "images a step, over all devices", fixed=True)
    eval_every: str = key("1 epochs", "interval between evaluations, besides the last step's")
    eval_batch_size: int = key(1024, "images an evaluation step, over all devices")
    attention_images: int = key(
        1024,
        "evaluation images that each evaluation measures gates and non-locality on (paper Fig. 5, "
        "6); 0: none",
    )
    log_every: str = key("50 steps", "interval between lines of training metrics")
    profile_at: int = key(0, "first of five steps to profile for TensorBoard; 0: none")
    label_smoothing: float = key(0.1, "share of the label spread over all classes")
    ema_decay: float = key(
        0.0,
        "decay, a step, of the parameters' running average, then also what is evaluated; 0: off",
        fixed=True,
    )
    attention: str = key(
        "auto",
        "form of the attention's arithmetic: 'xla', 'pallas' (the fused TPU kernel; slow "
        "elsewhere) or 'auto' (the kernel on TPUs)",
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
        InputError: the key's value is no duration.
    """
    return in_steps(get(config, name), f"config.{name}", steps_per_epoch)


def template() -> ml_collections.ConfigDict:
    """Every key at its default, for a config file to change. Unknown keys are errors."""
    return as_config_dict(Config())


def resolve(values: Mapping[str, Any]) -> Config:
    """Checks names, types and ranges, and freezes the configuration.

    Args:
        values: a nested mapping or ConfigDict; keys that it leaves out have their defaults.

    Raises:
        InputError: an unknown key, a value of a wrong type, or a value that makes no sense.
    """
    config = from_mapping(Config, values)
    _check_values(config)
    return config


def _check_values(config: Config) -> None:
    check_ranges(config)
    for name in ("train_for", "eval_every", "log_every", "checkpoint.every"):
        # An epoch has at least one step, so what is nothing here is nothing with any data.
        if duration_in_steps(config, name, 10**9) < 1:
            raise InputError(f"config.{name}='{get(config, name)}': expected more than nothing")
    duration_in_steps(config, "optimizer.warmup", 1)
    architecture(config, num_classes=2)


def architecture(config: Config, num_classes: int) -> Architecture:
    """The model that a config describes, for data of `num_classes` classes.

    Raises:
        InputError: an unknown model, or a field that is out of range or that it would not read.
    """
    overrides = {k: v for k, v in dataclasses.asdict(config.model).items() if v is not None}
    name = overrides.pop("name")
    size = config.data.image_size
    size = size * 2 if len(size) == 1 else size
    made = models.architecture(name, num_classes=num_classes, image_size=size, **overrides)
    for name in ("mean", "std"):
        if len(getattr(config.data, name)) != made.in_channels:
            raise InputError(
                f"config.data.{name}={getattr(config.data, name)}: expected {made.in_channels} "
                "values, one for each channel of the images (config.model.in_channels)"
            )
    return made
