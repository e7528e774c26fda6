"""Which model do tensors belong to? Their shapes say nearly everything."""

import dataclasses
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
        fields["use_gating"] = "blocks.0.attn.gating_param" in tensors
    heads = likely_heads(tensors)
    if heads is not None:
        fields["num_heads"] = heads
    fields |= square_positions(tensors)
    fields |= overrides
    for name in ("num_heads", "image_size"):
        if name not in fields:
            raise InputError(
                f"the tensors do not tell {name}: name it, by load_model(…, {name}=…) or "
                f"--override {name}=… on a command line"
            )
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


def likely_heads(tensors: Mapping[str, np.ndarray]) -> int | None:
    """The number of heads, where a GPSA layer shows it or the width is a DeiT's."""
    if "blocks.0.attn.pos_proj.weight" in tensors:
        return tensors["blocks.0.attn.pos_proj.weight"].shape[0]
    width = tensors["patch_embed.proj.weight"].shape[0]
    return None if width % _DEIT_HEAD_DIM else width // _DEIT_HEAD_DIM


def square_positions(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """`image_size`, and whether the class token has a position, where rows of positions tell.

    They do where the grid is a square; of another, only who made it knows the sides.
    """
    rows = tensors["pos_embed"].shape[1] if "pos_embed" in tensors else 0
    patch_size = tensors["patch_embed.proj.weight"].shape[2]
    has_gpsa = bool(_blocks_with(tensors, r"attn\.pos_proj\.weight"))
    for with_class in (False,) if has_gpsa else (True, False):
        side = math.isqrt(max(rows - with_class, 0))
        if side and side**2 == rows - with_class:
            size = side * patch_size
            return {"image_size": (size, size), "class_token_position": with_class}
    return {}


def model_keys(architecture: Architecture) -> dict[str, Any]:
    """A model's name and the fields in which it differs: what `config.model` needs to make it.

    Image size and number of classes are left out: the data decide them.
    """
    family = "convit" if architecture.gpsa_layers else "deit"
    by_data = ("image_size", "num_classes")
    fields = [f.name for f in dataclasses.fields(Architecture) if f.name not in by_data]

    def changed(name: str) -> dict[str, Any]:
        named = models.architecture(name)
        return {
            field: getattr(architecture, field)
            for field in fields
            if getattr(architecture, field) != getattr(named, field)
        }

    names = [name for name in models.list_models() if name.startswith(family)]
    nearest = min(names, key=lambda name: len(changed(name)))
    return {"name": nearest} | changed(nearest)
