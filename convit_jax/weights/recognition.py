"""Recognition of the architecture that tensors belong to, mostly from their shapes."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from convit_jax import models
from convit_jax.errors import InputError, nearest
from convit_jax.models import Architecture
from convit_jax.models.architecture import MAX_LAYERS
from convit_jax.weights.families import other_family

# The tensors of plain attention do not depend on the number of heads; DeiT's have 64 channels.
DEIT_HEAD_DIM = 64
# LayerScale's initial value, which trained factors do not show, is taken to be DeiT III's.
_LAYER_SCALE = 1e-4

# Number of axes of the tensors that determine an architecture; every axis has at least one entry.
_AXES = (
    (r"patch_embed\.proj\.weight", 4, "[width, channels, patch, patch]"),
    (r"(cls|dist)_token|pos_embed", 3, "[1, rows, width]"),
    (r"head(_dist)?\.weight", 2, "[classes, width]"),
    (r"blocks\.\d+\.attn\.pos_proj\.weight", 2, "[heads, 3]"),
    (r"blocks\.\d+\.attn\.\w+\.weight", 2, "[out, in]"),
    (r"blocks\.\d+\.mlp\.fc[12]\.weight", 2, "[out, in]"),
    (r"blocks\.\d+\.norm[12]\.\w+|norm\.\w+|blocks\.\d+\.ls[12]\.gamma", 1, "[width]"),
)
_REQUIRED = (
    "cls_token",
    "patch_embed.proj.weight",
    "head.weight",
    "blocks.0.norm1.weight",
    "blocks.0.mlp.fc1.weight",
)


def recognise(tensors: Mapping[str, np.ndarray], **overrides: Any) -> Architecture:
    """Return the architecture of tensors in the released layout.

    Args:
        tensors: by PyTorch name.
        **overrides: fields of `Architecture` that take precedence: `num_heads` or `image_size`
            if the tensors do not determine them, `dtype`, `drop_path_rate` and others.

    Raises:
        InputError: the tensors are not a ConViT's or DeiT's, or a field that they do not determine
            must be passed.
    """
    check_tensors(tensors)
    known = [field.name for field in dataclasses.fields(Architecture)]
    for name in overrides:
        if name not in known:
            raise InputError(f"models have no field '{name}': {nearest(name, known)}")
    width, in_channels, patch_size, _ = tensors["patch_embed.proj.weight"].shape
    gpsa = _block_indices(tensors, r"attn\.pos_proj\.weight")
    hidden = tensors["blocks.0.mlp.fc1.weight"].shape[0]
    fields: dict[str, Any] = {
        "num_classes": tensors["head.weight"].shape[0],
        "depth": len(_block_indices(tensors, r"norm1\.weight")),
        "gpsa_layers": len(gpsa),
        "patch_size": patch_size,
        "in_channels": in_channels,
        "mlp_ratio": exact_mlp_ratio(hidden, width),
        "qkv_bias": any(re.search(r"attn\.(qkv|qk)\.bias$", name) for name in tensors),
        "use_pos_embed": "pos_embed" in tensors,
        "distillation_token": _is_distilled(tensors),
    }
    if any(re.search(r"\.ls[12]\.gamma$", name) for name in tensors):
        fields["layer_scale"] = _LAYER_SCALE
    # Vanilla positional attention has no gates either, but the same tensors as fixed gates.
    if gpsa and overrides.get("positional_attention", "gated") == "gated":
        fields["use_gating"] = "blocks.0.attn.gating_param" in tensors
    fields |= fields_from_shapes(tensors) | overrides
    for name in ("num_heads", "image_size"):
        if name not in fields:
            raise InputError(
                f"{name} cannot be inferred from the tensors: pass load_model(…, {name}=…), or "
                f"--override {name}=… on the command line"
            )
    fields["image_size"] = models.as_image_size(fields["image_size"])
    if "class_token_position" not in fields and "pos_embed" in tensors and not gpsa:
        patches = math.prod(side // patch_size for side in fields["image_size"])
        class_rows = 1 + fields["distillation_token"]
        fields["class_token_position"] = tensors["pos_embed"].shape[1] == patches + class_rows
    heads = fields["num_heads"]
    if type(heads) is not int or heads < 1 or width % heads:
        raise InputError(f"num_heads={heads}: expected a divisor of {width}")
    fields["head_dim"] = width // heads
    return Architecture(**fields)


def check_tensors(tensors: Mapping[str, np.ndarray]) -> None:
    """Check that tensors have what is needed to recognise an architecture.

    Raises:
        InputError: they are another model's, or a tensor is missing or has an unexpected shape.
    """
    other_model = other_family(tensors)
    if other_model:
        description, name = other_model
        raise InputError(
            f"these are no ConViT or DeiT weights but those of {description} (they have "
            f"'{name}'): such models are not supported"
        )
    for name in _REQUIRED:
        if name not in tensors:
            is_headless = name == "head.weight" and "norm.weight" in tensors
            raise InputError(
                f"these are no ConViT or DeiT weights: no '{name}' among "
                f"{len(tensors)} tensors such as '{next(iter(tensors), '')}'"
                + (" (a model without a classifier?)" if is_headless else "")
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
    if blocks != set(range(depth)) or len(_block_indices(tensors, r"norm1\.weight")) != depth:
        raise InputError(
            f"the blocks are {_ranges(blocks)}, expected all of them from 0 on, each with a norm1"
        )
    if depth > MAX_LAYERS:
        raise InputError(f"there are {depth:,} blocks, expected at most {MAX_LAYERS}")
    gpsa = _block_indices(tensors, r"attn\.pos_proj\.weight")
    if gpsa != set(range(len(gpsa))):
        raise InputError(f"GPSA layers are {_ranges(gpsa)}, expected the first ones, from 0 on")


def nearest_model(tensors: Mapping[str, np.ndarray], **overrides: Any) -> str | None:
    """Return the named model with the tensors' width, depth, heads and GPSA layers, or None."""
    try:
        architecture = recognise(tensors, **{"image_size": 224} | overrides)
    except InputError:
        return None
    fields = ("width", "depth", "gpsa_layers", "num_heads", "distillation_token", "has_layer_scale")
    return _named(architecture, fields)


def named_model(architecture: Architecture) -> str | None:
    """Return the named model with this architecture, ignoring classes and image size, or None."""
    fields = (
        *("num_heads", "head_dim", "depth", "gpsa_layers", "mlp_ratio", "qkv_bias", "patch_size"),
        *("in_channels", "use_gating", "use_pos_embed", "class_token_position"),
        *("distillation_token", "has_layer_scale", "positional_attention"),
    )
    return _named(architecture, fields)


def _named(architecture: Architecture, fields: tuple[str, ...]) -> str | None:
    for name in models.model_names():
        named = models.architecture(name)
        if all(getattr(named, field) == getattr(architecture, field) for field in fields):
            return name
    return None


def _block_indices(tensors: Mapping[str, np.ndarray], pattern: str) -> set[int]:
    """Return the indices of the blocks that have a tensor of this pattern."""
    matches = (re.fullmatch(rf"blocks\.(\d{{1,9}})\.{pattern}", name) for name in tensors)
    return {int(match[1]) for match in matches if match}


def _ranges(numbers: set[int]) -> str:
    """{0, 1, 2, 9} → "0 to 2, 9"; at most four ranges."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    texts = [str(a) if a == b else f"{a} to {b}" for a, b in ranges[:4]]
    return ", ".join(texts) + (", …" if len(ranges) > 4 else "")


def exact_mlp_ratio(hidden: int, width: int) -> float:
    """Return the `mlp_ratio` that gives exactly this number of hidden channels."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def has_gpsa(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether there is a GPSA layer, which determines the number of heads."""
    return "blocks.0.attn.pos_proj.weight" in tensors


def _is_distilled(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether there is a distillation token, or its head."""
    return "dist_token" in tensors or "head_dist.weight" in tensors


def likely_num_heads(tensors: Mapping[str, np.ndarray]) -> int | None:
    """Return the number of heads of a GPSA layer, or that of a DeiT of this width, or None."""
    if has_gpsa(tensors):
        return tensors["blocks.0.attn.pos_proj.weight"].shape[0]
    width = tensors["patch_embed.proj.weight"].shape[0]
    return None if width % DEIT_HEAD_DIM else width // DEIT_HEAD_DIM


def fields_from_shapes(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return `num_heads` and `fields_from_positions`, as far as the shapes determine them."""
    heads = likely_num_heads(tensors)
    return fields_from_positions(tensors) | ({} if heads is None else {"num_heads": heads})


def fields_from_positions(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return `image_size` and `class_token_position` from the number of absolute positions.

    This works for square grids only: the sides of other grids cannot be inferred.
    """
    rows = tensors["pos_embed"].shape[1] if "pos_embed" in tensors else 0
    patch_size = tensors["patch_embed.proj.weight"].shape[2]
    for class_rows in (0,) if has_gpsa(tensors) else (1 + _is_distilled(tensors), 0):
        side = math.isqrt(max(rows - class_rows, 0))
        if side and side**2 == rows - class_rows:
            size = side * patch_size
            return {"image_size": (size, size), "class_token_position": class_rows > 0}
    return {}


def model_keys(architecture: Architecture) -> dict[str, Any]:
    """Return the keys of `config.model` for an architecture: a name and the fields that differ.

    Image size and number of classes are omitted: they are determined by the data.
    """
    family = "convit" if architecture.gpsa_layers else "deit"
    from_data = ("image_size", "num_classes")
    fields = [f.name for f in dataclasses.fields(Architecture) if f.name not in from_data]

    def changed_fields(name: str) -> dict[str, Any]:
        named = models.architecture(name)
        return {
            field: getattr(architecture, field)
            for field in fields
            if getattr(architecture, field) != getattr(named, field)
        }

    names = [name for name in models.model_names() if name.startswith(family)]
    name = min(names, key=lambda name: len(changed_fields(name)))
    return {"name": name} | changed_fields(name)
