"""Which model do tensors belong to? Their shapes say nearly everything."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from convit_jax import models
from convit_jax.errors import InputError, nearest
from convit_jax.models import Architecture
from convit_jax.models.architecture import MOST_LAYERS
from convit_jax.weights.families import family

# Plain attention does not show its number of heads; every DeiT has heads of 64 channels.
DEIT_HEAD_DIM = 64

# Axes of the tensors that an architecture is read from; every axis has at least one entry.
_AXES = (
    (r"patch_embed\.proj\.weight", 4, "[width, channels, patch, patch]"),
    (r"cls_token|pos_embed", 3, "[1, rows, width]"),
    (r"head\.weight", 2, "[classes, width]"),
    (r"blocks\.\d+\.attn\.pos_proj\.weight", 2, "[heads, 3]"),
    (r"blocks\.\d+\.attn\.\w+\.weight", 2, "[out, in]"),
    (r"blocks\.\d+\.mlp\.fc[12]\.weight", 2, "[out, in]"),
    (r"blocks\.\d+\.norm[12]\.\w+|norm\.\w+", 1, "[width]"),
)
_NEEDED = (
    "cls_token",
    "patch_embed.proj.weight",
    "head.weight",
    "blocks.0.norm1.weight",
    "blocks.0.mlp.fc1.weight",
)


def recognise(tensors: Mapping[str, np.ndarray], **overrides: Any) -> Architecture:
    """The architecture that tensors of the released layout were made for.

    Args:
        tensors: by PyTorch name.
        **overrides: fields of `Architecture` that are known better: `num_heads` or `image_size`
            where the tensors do not tell, `dtype`, `drop_path_rate` and such.

    Raises:
        InputError: these are no tensors of such a model, or something must be said by name.
    """
    check_tensors(tensors)
    known = [field.name for field in dataclasses.fields(Architecture)]
    for name in overrides:
        if name not in known:
            raise InputError(f"models have no field '{name}': {nearest(name, known)}")
    width, in_channels, patch_size, _ = tensors["patch_embed.proj.weight"].shape
    gpsa = _blocks_with(tensors, r"attn\.pos_proj\.weight")
    hidden = tensors["blocks.0.mlp.fc1.weight"].shape[0]
    fields: dict[str, Any] = {
        "num_classes": tensors["head.weight"].shape[0],
        "depth": len(_blocks_with(tensors, r"norm1\.weight")),
        "gpsa_layers": len(gpsa),
        "patch_size": patch_size,
        "in_channels": in_channels,
        "mlp_ratio": _ratio(hidden, width),
        "qkv_bias": any(re.search(r"attn\.(qkv|qk)\.bias$", name) for name in tensors),
        "use_pos_embed": "pos_embed" in tensors,
    }
    if gpsa:
        fields["use_gating"] = "blocks.0.attn.gating_param" in tensors
    fields |= told_by_shapes(tensors) | overrides
    for name in ("num_heads", "image_size"):
        if name not in fields:
            raise InputError(
                f"the tensors do not tell {name}: name it, by load_model(…, {name}=…) or "
                f"--override {name}=… on a command line"
            )
    fields["image_size"] = models.as_image_size(fields["image_size"])
    if "class_token_position" not in fields and "pos_embed" in tensors and not gpsa:
        patches = math.prod(side // patch_size for side in fields["image_size"])
        fields["class_token_position"] = tensors["pos_embed"].shape[1] == patches + 1
    heads = fields["num_heads"]
    if type(heads) is not int or heads < 1 or width % heads:
        raise InputError(f"num_heads={heads}: expected a divisor of {width}")
    fields["head_dim"] = width // heads
    return Architecture(**fields)


def check_tensors(tensors: Mapping[str, np.ndarray]) -> None:
    """Refuses tensors from which no model is read: another's, or without what shows its shape.

    Raises:
        InputError: what is missing or odd, and which other model they look like.
    """
    other = family(tensors)
    if other:
        what, shown_by = other
        raise InputError(
            f"these are no ConViT or DeiT weights but those of {what} ('{shown_by}' is there): "
            "such models are not supported"
        )
    for name in _NEEDED:
        if name not in tensors:
            headless = name == "head.weight" and "norm.weight" in tensors
            raise InputError(
                f"these are no ConViT or DeiT weights: there is no '{name}' among "
                f"{len(tensors)} tensors such as '{next(iter(tensors), '')}'"
                + (" (a model without a classifier?)" if headless else "")
            )
    for name, array in tensors.items():
        for pattern, axes, expected in _AXES:
            if re.fullmatch(pattern, name):
                if array.ndim != axes or not array.size:
                    raise InputError(f"'{name}' has the shape {array.shape}, expected {expected}")
                break
    _, _, *patch = tensors["patch_embed.proj.weight"].shape
    if patch[0] != patch[1]:
        raise InputError(f"patches are {patch[0]}x{patch[1]} pixels, expected squares")
    blocks = {int(m[1][:9]) for m in map(re.compile(r"blocks\.(\d+)\.").match, tensors) if m}
    depth = len(blocks)
    if blocks != set(range(depth)) or len(_blocks_with(tensors, r"norm1\.weight")) != depth:
        raise InputError(
            f"the blocks are {_ranges(blocks)}, expected all of them from 0 on, each with a norm1"
        )
    if depth > MOST_LAYERS:
        raise InputError(f"there are {depth:,} blocks, expected at most {MOST_LAYERS}")
    gpsa = _blocks_with(tensors, r"attn\.pos_proj\.weight")
    if gpsa != set(range(len(gpsa))):
        raise InputError(f"GPSA layers are {_ranges(gpsa)}, expected the first ones, from 0 on")


def nearest_model(tensors: Mapping[str, np.ndarray], **overrides: Any) -> str | None:
    """The named model whose width, depth and GPSA layers the tensors have, if there is one."""
    try:
        found = recognise(tensors, **{"image_size": 224} | overrides)
    except InputError:
        return None
    return _named(found, ("width", "depth", "gpsa_layers", "num_heads"))


def named_model(architecture: Architecture) -> str | None:
    """The named model that an architecture is, but for its classes and image size."""
    fields = (
        *("num_heads", "head_dim", "depth", "gpsa_layers", "mlp_ratio", "qkv_bias", "patch_size"),
        *("in_channels", "use_gating", "use_pos_embed", "class_token_position"),
    )
    return _named(architecture, fields)


def _named(architecture: Architecture, fields: tuple[str, ...]) -> str | None:
    for name in models.list_models():
        named = models.architecture(name)
        if all(getattr(named, field) == getattr(architecture, field) for field in fields):
            return name
    return None


def _blocks_with(tensors: Mapping[str, np.ndarray], pattern: str) -> set[int]:
    found = (re.fullmatch(rf"blocks\.(\d{{1,9}})\.{pattern}", name) for name in tensors)
    return {int(match[1]) for match in found if match}


def _ranges(numbers: set[int]) -> str:
    """{0, 1, 2, 9} → "0 to 2, 9"; of many ranges the first few."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    words = [str(a) if a == b else f"{a} to {b}" for a, b in ranges[:4]]
    return ", ".join(words) + (", …" if len(ranges) > 4 else "")


def _ratio(hidden: int, width: int) -> float:
    """`mlp_ratio`, of which the model makes just so many hidden channels: int(width · ratio)."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def has_gpsa(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether there is a GPSA layer, which shows the number of heads."""
    return "blocks.0.attn.pos_proj.weight" in tensors


def likely_heads(tensors: Mapping[str, np.ndarray]) -> int | None:
    """The number of heads, where a GPSA layer shows it or the width is a DeiT's."""
    if has_gpsa(tensors):
        return tensors["blocks.0.attn.pos_proj.weight"].shape[0]
    width = tensors["patch_embed.proj.weight"].shape[0]
    return None if width % DEIT_HEAD_DIM else width // DEIT_HEAD_DIM


def told_by_shapes(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """`num_heads` and what `square_positions` has, where shapes tell or suggest them."""
    heads = likely_heads(tensors)
    return square_positions(tensors) | ({} if heads is None else {"num_heads": heads})


def square_positions(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """`image_size`, and whether the class token has a position, where rows of positions tell.

    They do where the grid is a square; of another, only who made it knows the sides.
    """
    rows = tensors["pos_embed"].shape[1] if "pos_embed" in tensors else 0
    patch_size = tensors["patch_embed.proj.weight"].shape[2]
    for with_class in (False,) if has_gpsa(tensors) else (True, False):
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
