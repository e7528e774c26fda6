"""The named models, with the sizes of the paper's Table 1."""

import dataclasses
from typing import Any

import jax
from flax import nnx

from convit_jax.errors import InputError, nearest
from convit_jax.kernels import DEFAULT_ATTENTION, Attention
from convit_jax.models.architecture import GPSA_FIELDS, Architecture, as_image_size, in_our_spelling
from convit_jax.models.vit import VisionTransformer

_CONVIT = Architecture(num_heads=4)
# Touvron et al. 2021: biases in the attention, and a class token from the first layer on.
_DEIT = Architecture(
    num_heads=3, head_dim=64, gpsa_layers=0, qkv_bias=True, class_token_position=True
)

_replace = dataclasses.replace
_ZOO = {
    "convit_tiny": _replace(_CONVIT, num_heads=4),
    "convit_tiny_plus": _replace(_CONVIT, num_heads=4, head_dim=64),
    "convit_small": _replace(_CONVIT, num_heads=9),
    "convit_small_plus": _replace(_CONVIT, num_heads=9, head_dim=64),
    "convit_base": _replace(_CONVIT, num_heads=16),
    "convit_base_plus": _replace(_CONVIT, num_heads=16, head_dim=64),
    "deit_tiny": _replace(_DEIT, num_heads=3),
    "deit_tiny_plus": _replace(_DEIT, num_heads=4),
    "deit_small": _replace(_DEIT, num_heads=6),
    "deit_small_plus": _replace(_DEIT, num_heads=9),
    "deit_base": _replace(_DEIT, num_heads=12),
    "deit_base_plus": _replace(_DEIT, num_heads=16),
}

# Touvron et al. 2022, DeiT III: LayerScale, and no position of the class token.
_DEIT3 = _replace(_DEIT, class_token_position=False, layer_scale=1e-4)

_SIZES = ("tiny", "small", "base")
# Models of other papers, which `list_models` leaves out.
_OTHERS = {
    f"deit_{size}_distilled": _replace(_ZOO[f"deit_{size}"], distillation_token=True)
    for size in _SIZES
} | {
    "deit3_small": _replace(_DEIT3, num_heads=6),
    "deit3_medium": _replace(_DEIT3, num_heads=8),
    "deit3_base": _replace(_DEIT3, num_heads=12),
    "deit3_large": _replace(_DEIT3, num_heads=16, depth=24),
    "deit3_huge": _replace(_DEIT3, num_heads=16, head_dim=80, depth=32, patch_size=14),
}
_ALL = _ZOO | _OTHERS

# The models that timm has, too: our name → timm's.
TIMM_NAMES = (
    {f"convit_{size}": f"convit_{size}" for size in _SIZES}
    | {f"deit_{size}": f"deit_{size}_patch16_224" for size in _SIZES}
    | {name: f"{name}_patch{a.patch_size}_224" for name, a in _OTHERS.items()}
)
# Side of the paper's images, in pixels.
IMAGE_SIZE = 224
# The tag of their weights in timm's names: trained on ImageNet-1k.
TIMM_TAG = "fb_in1k"
# Of DeiT III there are also weights that were trained on ImageNet-22k first.
_TIMM_TAG_22K = "fb_in22k_ft_in1k"


def list_models() -> list[str]:
    """Return the names of the paper's models; `model_names` are all that `create_model` takes."""
    return list(_ZOO)


def model_names() -> list[str]:
    """Return the names of all models: the paper's, the distilled DeiTs and DeiT III."""
    return list(_ALL)


def model_name(name: str) -> str:
    """Return our name of a model: `deit_tiny` for timm's `deit_tiny_patch16_224.fb_in1k`.

    Raises:
        InputError: no model has that name.
    """
    ours = {theirs: name for name, theirs in TIMM_NAMES.items()}
    names = {known: known for known in _ALL} | ours
    names |= {f"{theirs}.{TIMM_TAG}": name for theirs, name in ours.items()}
    with_22k = ((theirs, name) for theirs, name in ours.items() if name.startswith("deit3_"))
    names |= {f"{theirs}.{_TIMM_TAG_22K}": name for theirs, name in with_22k}
    if name not in names:
        raise InputError(f"no model is called '{name}': {nearest(name, names)}")
    return names[name]


def architecture(name: str, **overrides: Any) -> Architecture:
    """Return the named model's architecture with some fields replaced.

    Args:
        name: one of `model_names()`, or timm's name of one.
        **overrides: fields of `Architecture`, or timm's names of them; `image_size` may be a single
            side.

    Raises:
        InputError: an unknown name or field, a value out of range, or a field that the model
            does not use (a GPSA field for a model without GPSA layers).
    """
    name, overrides = model_name(name), in_our_spelling(overrides)
    known = {field.name for field in dataclasses.fields(Architecture)}
    for field in overrides:
        if field not in known:
            raise InputError(f"models have no field '{field}': {nearest(field, known)}")
    if "image_size" in overrides:
        overrides["image_size"] = as_image_size(overrides["image_size"])
    base = _ALL[name]
    if overrides.get("gpsa_layers") and not base.gpsa_layers:
        twin = name.replace("deit", "convit")
        raise InputError(
            f"{name} has no GPSA layers (gpsa_layers={overrides['gpsa_layers']}): "
            f"use {twin if twin in _ZOO else 'a ConViT'}"
        )
    result = _replace(base, **overrides)
    unused = [field for field in GPSA_FIELDS if field in overrides and result.gpsa_layers == 0]
    if not result.conv_init and "locality_strength" in overrides:
        unused.append("locality_strength")
    if unused:
        reason = "conv_init is off" if result.gpsa_layers else "it has no GPSA layers"
        raise InputError(f"{name} does not use {', '.join(unused)}: {reason}")
    return result


def build(
    architecture: Architecture,
    seed: int = 0,
    attend: Attention = DEFAULT_ATTENTION,
    patch_form: str = "auto",
) -> VisionTransformer:
    """Return a model of an architecture with float32 parameters initialised from `seed`.

    `attend` and `patch_form` are as in `create_model`.
    """
    rngs = nnx.Rngs(params=jax.random.key(seed))
    return VisionTransformer(architecture, attend=attend, patch_form=patch_form, rngs=rngs)


def create_model(
    name: str,
    num_classes: int = 1000,
    image_size: int | tuple[int, int] = IMAGE_SIZE,
    seed: int = 0,
    *,
    attend: Attention = DEFAULT_ATTENTION,
    patch_form: str = "auto",
    **overrides: Any,
) -> VisionTransformer:
    """Create a model with newly initialised parameters.

    Args:
        name: one of `model_names()`, or timm's name of one.
        num_classes: number of logits; 0 for a model without a head, which returns features.
        image_size: side, or (height, width), in pixels.
        seed: seed of the parameters.
        attend: computes the attention; pass `kernels.attention_for(mesh)` for a mesh of devices.
        patch_form: how patches are embedded: by a matrix "product", a "convolution", or "auto",
            which costs less on the platform that a program is compiled for.
        **overrides: other fields of `Architecture`, or timm's names of them (`in_chans`).

    Returns:
        A model that maps normalised float images [B, H, W, channels] to float32 logits
        [B, num_classes].

    Raises:
        InputError: an unknown name or field, or a value out of range.
    """
    given = {} if image_size == IMAGE_SIZE else {"image_size": image_size}
    fields = {"num_classes": num_classes} | in_our_spelling(given | overrides)
    return build(architecture(name, **fields), seed, attend, patch_form)
