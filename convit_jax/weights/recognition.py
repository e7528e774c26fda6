"""Which model do tensors belong to? Their shapes say nearly everything."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from convit_jax import models
from convit_jax.errors import InputError
from convit_jax.models import Architecture

# Plain attention does not show its number of heads; every DeiT has heads of 64 channels.
_DEIT_HEAD_DIM = 64


def recognise(tensors: Mapping[str, np.ndarray], **overrides: Any) -> Architecture:
    """The architecture that tensors of the released layout were made for.

    Args:
        tensors: by PyTorch name.
        **overrides: fields of `Architecture` that are known better: `num_heads` or `image_size`
            where the tensors do not tell, `dtype`, `drop_path_rate` and such.

    Raises:
        InputError: these are no tensors of such a model, or something must be said by name.
    """
    for name in ("cls_token", "patch_embed.proj.weight", "head.weight", "blocks.0.norm1.weight"):
        if name not in tensors:
            raise InputError(
                f"these are no ConViT or DeiT weights: there is no '{name}' among "
                f"{len(tensors)} tensors such as '{next(iter(tensors), '')}'"
            )
    width, in_channels, patch_size, _ = tensors["patch_embed.proj.weight"].shape
    depth = 1 + max(_blocks_with(tensors, r"norm1\.weight"))
    gpsa = _blocks_with(tensors, r"attn\.pos_proj\.weight")
    if gpsa != set(range(len(gpsa))):
        raise InputError(f"GPSA layers are {sorted(gpsa)}, expected the first ones, from 0 on")
    fields: dict[str, Any] = {
        "num_classes": tensors["head.weight"].shape[0],
        "depth": depth,
        "gpsa_layers": len(gpsa),
        "patch_size": patch_size,
        "in_channels": in_channels,
        "mlp_ratio": tensors["blocks.0.mlp.fc1.weight"].shape[0] / width,
        "qkv_bias": any(re.search(r"attn\.(qkv|qk)\.bias$", name) for name in tensors),
        "use_pos_embed": "pos_embed" in tensors,
    }
    if gpsa:
        fields["num_heads"] = tensors["blocks.0.attn.pos_proj.weight"].shape[0]
        fields["use_gating"] = "blocks.0.attn.gating_param" in tensors
    elif width % _DEIT_HEAD_DIM == 0:
        fields["num_heads"] = width // _DEIT_HEAD_DIM
    fields |= _positions(tensors, patch_size, has_gpsa=bool(gpsa))
    fields |= overrides
    for name in ("num_heads", "image_size"):
        if name not in fields:
            raise InputError(f"the tensors do not tell {name}: name it, load_model(…, {name}=…)")
    fields["image_size"] = models.as_image_size(fields["image_size"])
    fields["head_dim"] = width // fields["num_heads"]
    if fields["head_dim"] * fields["num_heads"] != width:
        raise InputError(f"num_heads={fields['num_heads']}: expected a divisor of {width}")
    return Architecture(**fields)


def nearest_model(tensors: Mapping[str, np.ndarray]) -> str | None:
    """The named model whose width, depth and GPSA layers the tensors have, if there is one."""
    try:
        found = recognise(tensors, image_size=224)
    except InputError:
        return None
    same = ("width", "depth", "gpsa_layers", "num_heads")
    for name in models.list_models():
        made = models.architecture(name)
        if all(getattr(made, field) == getattr(found, field) for field in same):
            return name
    return None


def _blocks_with(tensors: Mapping[str, np.ndarray], pattern: str) -> set[int]:
    found = (re.fullmatch(rf"blocks\.(\d+)\.{pattern}", name) for name in tensors)
    return {int(match[1]) for match in found if match}


def _positions(
    tensors: Mapping[str, np.ndarray], patch_size: int, *, has_gpsa: bool
) -> dict[str, Any]:
    """The image size and whether the class token has a position, from the rows of positions."""
    if "pos_embed" not in tensors:
        return {}
    rows = tensors["pos_embed"].shape[1]
    for with_class in (False,) if has_gpsa else (True, False):
        side = math.isqrt(rows - with_class)
        if side**2 == rows - with_class:
            return {"image_size": side * patch_size, "class_token_position": with_class}
    return {}  # not a square: only who made them knows its sides
