"""Conversion between this package's parameters and the tensors of the released PyTorch models.

A table maps each parameter name to the name of the PyTorch tensor and to its layout.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convit_jax import models
from convit_jax.errors import InputError
from convit_jax.models import Architecture, VisionTransformer


@dataclasses.dataclass(frozen=True)
class _Layout:
    """The layout of a PyTorch tensor: two inverse functions of (array, architecture)."""

    to_torch: Callable[[np.ndarray, Architecture], np.ndarray]
    from_torch: Callable[[np.ndarray, Architecture], np.ndarray]


def _patches_to_torch(kernel: np.ndarray, a: Architecture) -> np.ndarray:
    """[p · p · channels, C] → [C, channels, p, p], a convolution's weight."""
    grid = kernel.reshape(a.patch_size, a.patch_size, a.in_channels, a.width)
    return grid.transpose(3, 2, 0, 1)


def _patches_from_torch(weight: np.ndarray, a: Architecture) -> np.ndarray:
    return weight.transpose(2, 3, 1, 0).reshape(-1, a.width)


# The released models' name of the embedding of patches, [C, channels, patch, patch].
PATCH_KERNEL = "patch_embed.proj.weight"

_SAME = _Layout(lambda array, _: array, lambda array, _: array)
_TRANSPOSED = _Layout(lambda array, _: array.T, lambda array, _: array.T)
_PATCHES = _Layout(_patches_to_torch, _patches_from_torch)

# (pattern of our name, PyTorch name, layout); the first pattern that matches the full name applies.
_TABLE = (
    (r"patch_embed\.kernel", r"patch_embed.proj.weight", _PATCHES),
    (r"patch_embed\.bias", r"patch_embed.proj.bias", _SAME),
    (r"(cls_token|dist_token|pos_embed)", r"\1", _SAME),
    (r"blocks\.(\d+)\.layer_scale(\d)\.scale", r"blocks.\1.ls\2.gamma", _SAME),
    (r"blocks\.(\d+)\.attention\.gating", r"blocks.\1.attn.gating_param", _SAME),
    (r"blocks\.(\d+)\.attention\.(\w+)\.kernel", r"blocks.\1.attn.\2.weight", _TRANSPOSED),
    (r"blocks\.(\d+)\.attention\.(\w+)\.bias", r"blocks.\1.attn.\2.bias", _SAME),
    (r"(.*norm\d?)\.scale", r"\1.weight", _SAME),
    (r"(.*)\.kernel", r"\1.weight", _TRANSPOSED),
    (r"(.*\.bias)", r"\1", _SAME),
)

# The names of all tensors of the released models, of any depth.
_PARAMETER = re.compile(
    r"cls_token|dist_token|pos_embed|blocks\.\d+\.(attn\.gating_param|ls[12]\.gamma)|"
    r"(patch_embed\.proj|norm|head|head_dist|blocks\.\d+\.(norm[12]|mlp\.fc[12]|attn\.(qkv|qk|v|proj|pos_proj)))"
    r"\.(weight|bias)"
)


def in_timms_spelling(name: str) -> str:
    """Return timm's name of a tensor: `blocks.0.ls1.gamma` for DeiT III's `blocks.0.gamma_1`."""
    return re.sub(r"^(blocks\.\d+)\.gamma_([12])$", r"\1.ls\2.gamma", name)


def is_parameter(name: str) -> bool:
    """Whether it is the name of a tensor of the released models."""
    return _PARAMETER.fullmatch(name) is not None


def _lookup(name: str) -> tuple[str, _Layout]:
    """Return the PyTorch name and layout of a parameter."""
    for jax_name, torch_name, layout in _TABLE:
        match = re.fullmatch(jax_name, name)
        if match:
            return match.expand(torch_name), layout
    raise KeyError(f"no rule for the parameter '{name}'")


def to_torch(params: Mapping[str, np.ndarray], architecture: Architecture) -> dict[str, np.ndarray]:
    """Convert parameters, by dotted name, to the released model's tensors."""
    tensors = {}
    for name, array in params.items():
        torch_name, layout = _lookup(name)
        tensors[torch_name] = np.ascontiguousarray(layout.to_torch(np.asarray(array), architecture))
    return tensors


@functools.cache
def parameter_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter, by dotted name."""
    model = nnx.eval_shape(lambda: models.build(architecture))
    variables = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {".".join(map(str, path)): variable.shape for path, variable in variables}


def from_torch(
    tensors: Mapping[str, np.ndarray], architecture: Architecture
) -> dict[str, np.ndarray]:
    """Convert the released model's tensors to parameters.

    Args:
        tensors: the released model's tensors, by name.
        architecture: of the model.

    Returns:
        Parameters by dotted name.

    Raises:
        InputError: tensors are missing, unexpected or of the wrong shape; all are listed.
    """
    missing, misshapen, params = [], [], {}
    unexpected = set(tensors)
    for name, shape in parameter_shapes(architecture).items():
        torch_name, layout = _lookup(name)
        if torch_name not in tensors:
            missing.append(torch_name)
            continue
        unexpected.discard(torch_name)
        expected = _torch_shape(layout, shape, architecture)
        if tensors[torch_name].shape != expected:
            misshapen.append(f"{torch_name} is {tensors[torch_name].shape}, expected {expected}")
            continue
        params[name] = layout.from_torch(tensors[torch_name], architecture)
    lists = {"missing": missing, "unexpected": sorted(unexpected), "wrong shape": misshapen}
    problems = [f"{problem}: {', '.join(names)}" for problem, names in lists.items() if names]
    if problems:
        raise InputError(f"the weights do not fit the model; {'; '.join(problems)}")
    return params


def _torch_shape(
    layout: _Layout, shape: tuple[int, ...], architecture: Architecture
) -> tuple[int, ...]:
    """Return the shape of a parameter in the released model.

    Nothing is allocated, because a damaged card can have shapes that exceed the memory.
    """
    abstract = jax.ShapeDtypeStruct(shape, np.bool_)
    return jax.eval_shape(lambda array: layout.to_torch(array, architecture), abstract).shape


def load_tensors(model: VisionTransformer, tensors: Mapping[str, np.ndarray]) -> None:
    """Set a model's parameters from the released model's tensors, in place.

    Raises:
        InputError: the tensors do not fit the model, which then remains unchanged.
    """
    params = from_torch(tensors, model.architecture)
    variables = nnx.to_flat_state(nnx.state(model, nnx.Param))
    arrays = [
        (path, variable.replace(jnp.asarray(array, variable.dtype)))
        for (path, variable), array in zip(variables, params.values(), strict=True)
    ]
    nnx.update(model, nnx.from_flat_state(arrays))
