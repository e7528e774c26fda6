"""The model card, README.md of a repository on the Hub: the model, its training, how to load it."""

import pathlib
from collections.abc import Mapping
from typing import Any

from convit_jax.data.images.preprocessing import Preprocessing
from convit_jax.models import Architecture
from convit_jax.weights.model_checkpoints import Run
from convit_jax.weights.recognition import model_keys
from convit_jax.weights.timm_config import timm_model, why_not_in_timm

# What of a run's config the card lists, beside the keys of the model.
_RECIPE = ("train_for", "batch_size", "optimizer.learning_rate", "optimizer.learning_rate_batch",
           "optimizer.warmup", "optimizer.weight_decay", "optimizer.layer_decay",
           "optimizer.frozen", "label_smoothing", "ema_decay", "augment.repeats", "augment.crop",
           "augment.flip", "augment.randaugment", "augment.erase", "augment.mixup",
           "augment.cutmix", "seed", "init_from")  # fmt: skip


def model_card(
    repository: str,
    a: Architecture,
    preprocessing: Preprocessing,
    run: Run | None,
    num_parameters: int,
    assumptions: str,
) -> str:
    """Return the text of README.md.

    Args:
        repository: ORG/NAME on the Hub.
        a: the architecture.
        preprocessing: of the model's images.
        run: the training run that the weights are from, if it is known.
        num_parameters: of the model.
        assumptions: what of the preprocessing is assumed; "" if nothing.
    """
    obstacle = why_not_in_timm(a)
    name = repository.partition("/")[2]
    sections = [
        _metadata(in_timm=not obstacle),
        f"# {name}\n\n{_description(a, num_parameters)}",
        f"## Load it\n\n{_loading_here(repository, preprocessing)}\n\n"
        + (_not_in_timm(obstacle) if obstacle else _loading_in_timm(repository, a)),
        f"## Images\n\n{_images(preprocessing, assumptions)}",
        *_training(run),
    ]
    return "\n\n".join(sections) + "\n"


def _metadata(*, in_timm: bool) -> str:
    library = "timm" if in_timm else "convit_jax"
    return (
        f"---\nlibrary_name: {library}\npipeline_tag: image-classification\n"
        "tags:\n- image-classification\n- jax\n---"
    )


def _description(a: Architecture, num_parameters: int) -> str:
    keys = model_keys(a)
    changed = ", ".join(f"`{key}={value}`" for key, value in keys.items() if key != "name")
    kind = (
        "[ConViT](https://arxiv.org/abs/2103.10697)"
        if a.gpsa_layers
        else "[DeiT](https://arxiv.org/abs/2012.12877)"
    )
    height, width = a.image_size
    gpsa = (
        f", the first {a.gpsa_layers} with gated positional self-attention" if a.gpsa_layers else ""
    )
    return (
        f"A {kind} with {num_parameters:,} parameters: {a.depth} layers{gpsa}, {a.num_heads} heads "
        f"of {a.head_dim} channels, images of {height} x {width} pixels in patches of "
        f"{a.patch_size}, {a.num_classes:,} classes. As a model of `convit_jax`: `{keys['name']}`"
        + (f" with {changed}." if changed else ".")
    )


def _loading_here(repository: str, preprocessing: Preprocessing) -> str:
    p = preprocessing
    return (
        "In JAX, with `convit_jax`:\n\n```python\nimport convit_jax\n\n"
        f'model = convit_jax.load_model("hf://{repository}")\n'
        "images = convit_jax.preprocess(\n"
        f'    "photograph.jpg", image_size={p.image_size}, crop_fraction={p.crop_fraction},\n'
        f"    mean={p.mean}, std={p.std},\n)\nlogits = model(images)\n```\n\n"
        "or on the command line, with class names:\n\n```\n"
        f"python -m convit_jax.predict --weights hf://{repository} photograph.jpg\n```"
    )


def _loading_in_timm(repository: str, a: Architecture) -> str:
    model = timm_model(a)
    args = "`, `".join(f"{key}={value}" for key, value in model.model_args.items())
    note = f" with `{args}`, which are in `config.json`" if args else ""
    return (
        f"In PyTorch, with timm 1.0.9 or later, as `{model.name}`{note}:\n\n"
        "```python\nimport timm\n\n"
        f'model = timm.create_model("hf-hub:{repository}", pretrained=True).eval()\n'
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n```"
    )


def _not_in_timm(obstacle: str) -> str:
    return f"timm has no model of this architecture: {obstacle}. The tensors have timm's names."


def _images(p: Preprocessing, assumptions: str) -> str:
    height, width = p.image_size
    return (
        f"Scaled by a bicubic filter so that the central {height} x {width} pixels are "
        f"{p.crop_fraction:g} of the shorter side, cropped, then (x / 255 - mean) / std with mean "
        f"{list(p.mean)} and standard deviation {list(p.std)}. Class names are in `config.json`, "
        "if they are known." + (f" Assumed, not known: {assumptions}." if assumptions else "")
    )


def _training(run: Run | None) -> list[str]:
    """Return the sections about data, recipe and metrics."""
    if run is None:
        return ["## Training\n\nHow the weights were trained is not recorded in them."]
    data = run.config["data"]
    held_out = f"{100 * data.get('holdout', 0):g} % of it, which were held out"
    evaluated = f"`{_shareable(data['eval'])}`" if data.get("eval") else held_out
    lines = [f"Trained on `{_shareable(data.get('train'))}`, evaluated on {evaluated}."]
    if data.get("fraction", 1.0) != 1.0:
        lines.append(f"Of the training images, the share {data['fraction']:g} was used.")
    metrics = f"at step {run.step:,}" + (
        "" if run.accuracy is None else f": top-1 accuracy {100 * run.accuracy:.2f} %"
    )
    recipe = "\n".join(f"| `{key}` | {_shareable(_value(run.config, key))} |" for key in _RECIPE)
    return [
        f"## Data\n\n{' '.join(lines)}",
        f"## Metrics\n\nThe weights are those {metrics}.",
        "## Recipe\n\nKeys of `convit_jax`'s config:\n\n| key | value |\n|---|---|\n" + recipe,
    ]


def _value(config: Mapping[str, Any], key: str) -> Any:
    """Return a value by its dotted key; "" if an earlier version had no such key."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part, "") if isinstance(value, Mapping) else ""
    return value


def _shareable(value: Any) -> str:
    """Return a value as text for a table, without the directories of paths on this machine."""
    text = ", ".join(value) if isinstance(value, list) else str(value)
    kind, _, rest = text.partition(":")
    if kind == "tfds":
        text = ":".join(text.split(":")[:3])  # without the directory of the data
    elif kind in ("folder", "wds"):
        text = f"{kind}:{pathlib.PurePath(rest).name}"
    elif "/" in text and "://" not in text:
        text = pathlib.PurePath(text).name
    return text.replace("|", r"\|")
