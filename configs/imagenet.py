"""The recipe of the released models (DeiT's), shared by the ImageNet configs.

Arguments, after a colon and separated by commas, as in configs/convit_s.py:fraction=0.05

    fraction=F    the first int(n F) images of each class, and 1/F as many epochs (paper Table 2)
    ablation=R    row a to g of the paper's Table 3: b frozen gates, c no convolutional
                  initialisation, d neither, e the DeiT, f frozen GPSA, g frozen GPSA without the
                  initialisation
    cifar100      CIFAR-100 scaled to 224 pixels, 1000 epochs (paper App. C)
    released      exactly the learning rate and the decay of the released code: the rate changes
                  once per epoch and one epoch late, and 72 tensors decay rather than 70 (also the
                  class token and the positions)
"""

from collections.abc import Callable

import ml_collections

from convit_jax.config import GPSA_ATTENTION, NO_DECAY, template
from convit_jax.config.files import split_arguments
from convit_jax.errors import InputError


def deit_recipe(model: str, argument: str = "") -> ml_collections.ConfigDict:
    """Return the experiment of one model, changed by `argument`.

    Args:
        model: one of `convit_jax.list_models()`.
        argument: comma-separated arguments, as described above.

    Raises:
        InputError: an argument is unknown, or its value is not allowed.
    """
    config = template()
    config.model.name = model
    config.model.drop_path_rate = 0.1
    config.model.dtype = "bfloat16"

    config.train_for = "300 epochs"
    config.batch_size = 1024
    config.optimizer.learning_rate = 5e-4
    config.optimizer.learning_rate_batch = 512
    if model.endswith("_plus"):
        config.batch_size = 512
        config.optimizer.learning_rate = 4e-4

    config.data.train = "tfds:imagenet2012:train"
    config.data.eval = "tfds:imagenet2012:validation"
    config.data.num_workers = -1

    config.augment.repeats = 3
    config.augment.crop = "random_resized"
    config.augment.flip = 0.5
    config.augment.randaugment = "rand-m9-mstd0.5-inc1"
    config.augment.erase = 0.25
    config.augment.mixup = 0.8
    config.augment.cutmix = 1.0
    config.label_smoothing = 0.1

    for name, value in split_arguments(argument, _WITH_VALUE, _SWITCHES).items():
        change = _WITH_VALUE.get(name) or _SWITCHES[name]
        change(config, value)
    return config


def _fraction(config: ml_collections.ConfigDict, value: str) -> None:
    try:
        fraction = float(value)
    except ValueError:
        fraction = 0.0
    if not 0 < fraction <= 1:
        raise InputError(f"config argument 'fraction={value}': expected a share such as 0.05")
    config.data.fraction = fraction
    config.keep_budget = True
    # Epochs are shorter by the factor F, and the run has 1/F as many: keep the same intervals.
    config.eval_every = config.checkpoint.every = f"{1 / fraction:.6g} epochs"


def _ablation(config: ml_collections.ConfigDict, row: str) -> None:
    if row not in tuple("abcdefg"):
        raise InputError(f"config argument 'ablation={row}': expected a row of Table 3, a to g")
    if not config.model.name.startswith("convit"):
        raise InputError(f"config argument 'ablation={row}': {config.model.name} has no GPSA")
    if row == "e":
        config.model.name = config.model.name.replace("convit", "deit")
        return
    if row in "bdfg":
        config.model.use_gating = False
    if row in "cdg":
        config.model.conv_init = False
    if row in "fg":
        config.optimizer.frozen = (GPSA_ATTENTION,)


def _cifar100(config: ml_collections.ConfigDict, _: str) -> None:
    config.data.train, config.data.eval = "tfds:cifar100:train", "tfds:cifar100:test"
    config.train_for = "1000 epochs"


def _released(config: ml_collections.ConfigDict, _: str) -> None:
    config.optimizer.schedule_every = "epoch"
    config.optimizer.schedule_lag = 1
    config.optimizer.no_decay = NO_DECAY[:1]


_Change = Callable[[ml_collections.ConfigDict, str], None]
_WITH_VALUE: dict[str, _Change] = {"fraction": _fraction, "ablation": _ablation}
_SWITCHES: dict[str, _Change] = {"cifar100": _cifar100, "released": _released}
