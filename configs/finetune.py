"""Fine-tunes weights on images of your own, or probes them with a new head alone.

    python train.py --workdir runs/mine \\
        --config configs/finetune.py:data=folder:IMAGES,weights=convit_tiny.safetensors

Arguments, after the colon and separated by commas:

    data=D        what to train on: folder:PATH, tfds:NAME:SPLIT or digits:train
    weights=W     anything that convit_jax.load_model takes
    eval=D        what to evaluate on. Without it, a folder that has the parts train/ and val/ (or
                  validation/, test/) is used as they say; of anything else a tenth of each class is
                  held out
    epochs=N      how long, 30 by default
    image_size=S  side in pixels; the weights' own by default
    probe         train the head alone, on frozen features

The model is the weights' own, with a head for the classes of the data. Layers near the images learn
more slowly (layer_decay 0.75). The learning rate is a starting point: it was not tuned on released
weights, which could not be downloaded where this was written.
"""

import pathlib

import ml_collections

from convit_jax.config import template
from convit_jax.errors import InputError, nearest
from convit_jax.weights import model_keys, open_weights

ARGUMENTS = ("data", "weights", "eval", "epochs", "image_size", "probe")
# What a folder's part for evaluation is called.
EVAL_PARTS = ("val", "validation", "test")


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """The experiment; `argument` is told above."""
    given = _parse(argument)
    weights = open_weights(given["weights"])
    architecture = weights.architecture()
    preprocessing = weights.preprocessing(architecture)

    config = template()
    config.init_from = given["weights"]
    for name, value in model_keys(architecture).items():
        config.model[name] = value
    config.model.drop_path_rate = 0.1
    config.data.image_size = _image_size(given, architecture.image_size)
    config.data.eval_crop = preprocessing.crop_fraction
    config.data.mean, config.data.std = preprocessing.mean, preprocessing.std

    config.data.train, config.data.eval = _parts(given)
    config.data.holdout = 0.0 if config.data.eval else 0.1
    config.train_for = f"{_number(given, 'epochs', 30)} epochs"
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
    if "probe" in given:
        config.model.drop_path_rate = 0.0
        config.optimizer.learning_rate = 3e-3
        config.optimizer.layer_decay = 1.0
        config.optimizer.frozen = (r"(?!head\.).*",)
    return config


def _parse(argument: str) -> dict[str, str]:
    given = {}
    for part in filter(None, argument.split(",")):
        name, _, value = part.partition("=")
        if name not in ARGUMENTS:
            raise InputError(f"config argument '{part}': {nearest(name, ARGUMENTS)}")
        if bool(value) == (name == "probe"):
            raise InputError(
                f"config argument '{part}': expected "
                + ("probe, without a value" if name == "probe" else f"{name}=VALUE")
            )
        given[name] = value
    for name in ("data", "weights"):
        if name not in given:
            raise InputError(
                f"configs/finetune.py: {name}= is missing, expected "
                "configs/finetune.py:data=folder:IMAGES,weights=WEIGHTS"
            )
    return given


def _parts(given: dict[str, str]) -> tuple[str, str]:
    """What to train on and what to evaluate on, or '' for a part held out."""
    data = given["data"]
    if "eval" in given:
        return data, given["eval"]
    root = pathlib.Path(data.removeprefix("folder:"))
    if data.startswith("folder:") and (root / "train").is_dir():
        for part in EVAL_PARTS:
            if (root / part).is_dir():
                return f"folder:{root}/train", f"folder:{root}/{part}"
    return data, ""


def _image_size(given: dict[str, str], native: tuple[int, int]) -> tuple[int, ...]:
    return (_number(given, "image_size", 0),) if "image_size" in given else native


def _number(given: dict[str, str], name: str, default: int) -> int:
    value = given.get(name, str(default))
    if not value.isdigit() or not int(value):
        raise InputError(f"config argument '{name}={value}': expected a whole number above 0")
    return int(value)
