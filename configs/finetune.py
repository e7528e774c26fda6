"""Fine-tunes weights on your own images, or trains only a new head on them.

    python train.py --workdir runs/mine \\
        --config configs/finetune.py:data=folder:IMAGES,weights=convit_tiny.safetensors

Arguments, after the colon and separated by commas:

    data=D        what to train on: folder:PATH, wds:x-{00..63}.tar, tfds:NAME:SPLIT or digits:train
    weights=W     anything that convit_jax.load_model takes
    eval=D        what to evaluate on. By default, if D of data= is a folder with the parts train/
                  and val/ (or valid/, validation/, test/), these are used; otherwise a tenth of
                  each class is held out
    epochs=N      number of epochs, 30 by default
    image_size=S  side in pixels, by default that of the weights
    probe         train only the head, on frozen features, at the cost of a forward pass

The model is that of the weights, with a head for the classes of the data. Layers near the images
learn more slowly (layer_decay 0.75). The learning rate is a starting point: it was not tuned on
released weights, which could not be downloaded where this was written.
"""

import ml_collections

from convit_jax.config import template
from convit_jax.config.files import split_arguments
from convit_jax.data.sources.folders import folder_splits
from convit_jax.errors import InputError
from convit_jax.weights import model_keys, open_weights

PATHS = ("data", "weights", "eval")  # their values may contain commas
NAMES, SWITCHES = (*PATHS, "epochs", "image_size"), ("probe",)


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """Return the experiment; `argument` is described above."""
    arguments = _parse(argument)
    weights = open_weights(arguments["weights"])
    architecture = weights.architecture()
    preprocessing = weights.preprocessing(architecture)

    config = template()
    config.init_from = arguments["weights"]
    for name, value in model_keys(architecture).items():
        config.model[name] = value
    config.model.drop_path_rate = 0.1
    config.data.image_size = _image_size(arguments, architecture.image_size)
    config.data.eval_crop = preprocessing.crop_fraction
    config.data.mean, config.data.std = preprocessing.mean, preprocessing.std

    config.data.train, config.data.eval = _examples(arguments)
    config.data.holdout = 0.0 if config.data.eval else 0.1
    config.train_for = f"{_number(arguments, 'epochs', 30)} epochs"
    config.batch_size = config.eval_batch_size = 64
    config.log_every = "10 steps"

    if architecture.in_channels == 3:
        config.augment.crop = "random_resized"
        config.augment.crop_scale = (0.35, 1.0)
        config.augment.flip = 0.5
    config.optimizer.learning_rate = 5e-4
    config.optimizer.learning_rate_batch = 64
    config.optimizer.warmup = "1 epochs"
    config.optimizer.min_learning_rate = 1e-6
    config.optimizer.layer_decay = 0.75
    if "probe" in arguments:
        config.model.drop_path_rate = 0.0
        config.optimizer.learning_rate = 3e-3
        config.optimizer.layer_decay = 1.0
        heads = r"head(_dist)?" if architecture.distillation_token else "head"
        config.optimizer.frozen = (rf"(?!{heads}\.).*",)
    return config


def _parse(argument: str) -> dict[str, str]:
    arguments = split_arguments(argument, NAMES, SWITCHES, PATHS)
    for name in ("data", "weights"):
        if name not in arguments:
            raise InputError(
                f"configs/finetune.py: {name}= is missing, expected "
                "configs/finetune.py:data=folder:IMAGES,weights=WEIGHTS"
            )
    return arguments


def _examples(arguments: dict[str, str]) -> tuple[str, str]:
    """Return the data to train on and to evaluate on; '' for held-out training images."""
    data = arguments["data"]
    if "eval" in arguments:
        return data, arguments["eval"]
    splits = folder_splits(data)
    if splits is None or splits.train is None:
        return data, ""
    return splits.train, splits.eval or ""


def _image_size(arguments: dict[str, str], native: tuple[int, int]) -> tuple[int, ...]:
    return (_number(arguments, "image_size", 0),) if "image_size" in arguments else native


def _number(arguments: dict[str, str], name: str, default: int) -> int:
    value = arguments.get(name, str(default))
    if not value.isdigit() or not int(value):
        raise InputError(f"config argument '{name}={value}': expected a whole number above 0")
    return int(value)
