"""The `config.json` that timm reads: which of its models, with which arguments and images."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from convit_jax import models
from convit_jax.data.images.preprocessing import Preprocessing
from convit_jax.models import Architecture
from convit_jax.models.vit import HEADS
from convit_jax.weights.recognition import exact_mlp_ratio, named_model


@dataclasses.dataclass(frozen=True)
class TimmModel:
    """A model of timm.

    Attributes:
        name: for `timm.create_model`.
        model_args: the arguments that differ from those of the name.
    """

    name: str
    model_args: Mapping[str, Any]


def why_not_in_timm(a: Architecture) -> str:
    """Return why timm has no model of an architecture, or "" if it has one."""
    if a.gpsa_layers:
        reasons = {
            "its ConViT has gates in every GPSA layer": not a.use_gating
            or a.positional_attention == "vanilla",
            "its ConViT takes square images only": a.grid[0] != a.grid[1],
            "its ConViT has no LayerScale": a.has_layer_scale,
            "its ConViT has no distillation token": a.distillation_token,
        }
    else:
        without_positions = not (a.use_pos_embed and a.class_token_position)
        reasons = {
            "its distilled model has positions of all tokens": a.distillation_token
            and without_positions
        }
    return next((reason for reason, applies in reasons.items() if applies), "")


def timm_model(a: Architecture) -> TimmModel:
    """Return timm's model of an architecture that `why_not_in_timm` has no objection to."""
    name = named_model(a)
    if name not in models.TIMM_NAMES:
        name = "convit_tiny" if a.gpsa_layers else "deit_tiny"
        if a.distillation_token:
            name = "deit_tiny_distilled"
        elif a.has_layer_scale:
            name = "deit3_small"
    defaults = _arguments(models.architecture(name))
    args = {key: value for key, value in _arguments(a).items() if value != defaults[key]}
    return TimmModel(models.TIMM_NAMES[name], args)


def _arguments(a: Architecture) -> dict[str, Any]:
    """Return the arguments of timm's class that describe an architecture."""
    height, width = a.image_size
    common = {
        "img_size": height if height == width else [height, width],
        "patch_size": a.patch_size,
        "in_chans": a.in_channels,
        "depth": a.depth,
        "num_heads": a.num_heads,
        "mlp_ratio": exact_mlp_ratio(a.hidden_width, a.width),
        "qkv_bias": a.qkv_bias,
    }
    if a.gpsa_layers:
        return common | {
            "embed_dim": a.head_dim,  # timm's ConViT multiplies it by the heads
            "local_up_to_layer": a.gpsa_layers,
            "use_pos_embed": a.use_pos_embed,
        }
    return common | {
        "embed_dim": a.width,
        "no_embed_class": not a.class_token_position,
        "pos_embed": "learn" if a.use_pos_embed else "none",
        # Its value is replaced by the weights.
        "init_values": 1e-4 if a.has_layer_scale else None,
    }


def timm_config(
    a: Architecture, preprocessing: Preprocessing, class_names: tuple[str, ...] | None
) -> dict[str, Any]:
    """Return the content of `config.json`, without a model if timm has none.

    Args:
        a: the architecture.
        preprocessing: of the model's images.
        class_names: of the model's classes, or None.
    """
    heads = [*HEADS] if a.distillation_token else HEADS[0]
    config: dict[str, Any] = {"num_classes": a.num_classes, "num_features": a.width}
    if not why_not_in_timm(a):
        model = timm_model(a)
        config = {"architecture": model.name} | config
        config |= {"model_args": dict(model.model_args)} if model.model_args else {}
    return config | {
        "pretrained_cfg": {
            "input_size": [a.in_channels, *preprocessing.image_size],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": preprocessing.crop_fraction,
            "crop_mode": "center",
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "num_classes": a.num_classes,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": heads,
        },
        **({} if class_names is None else {"label_names": list(class_names)}),
    }
