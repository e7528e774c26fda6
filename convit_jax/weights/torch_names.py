"""The map between our parameters and the tensors of the released PyTorch models, both ways.

One table says, for a parameter of ours, what its tensor is called there and how it is laid out.
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
    """How a tensor lies there: two inverse functions of (array, architecture)."""

    to_torch: Callable[[np.ndarray, Architecture], np.ndarray]
    from_torch: Callable[[np.ndarray, Architecture], np.ndarray]


def _patches_to_torch(kernel: np.ndarray, a: Architecture) -> np.ndarray:
    """[p · p · channels, C] → [C, channels, p, p], a convolution's weight."""
    grid = kernel.reshape(a.patch_size, a.patch_size, a.in_channels, a.width)
    return grid.transpose(3, 2, 0, 1)


def _patches_from_torch(weight: np.ndarray, a: Architecture) -> np.ndarray:
    return weight.transpose(2, 3, 1, 0).reshape(-1, a.width)


_SAME = _Layout(lambda array, _: array, lambda array, _: array)
_TRANSPOSED = _Layout(lambda array, _: array.T, lambda array, _: array.T)
_PATCHES = _Layout(_patches_to_torch, _patches_from_torch)

# (our name, their name, layout), tried in order; our names are matched whole.
_TABLE = (
    (r"patch_embed\.kernel", r"patch_embed.proj.weight", _PATCHES),
    (r"patch_embed\.bias", r"patch_embed.proj.bias", _SAME),
    (r"(cls_token|pos_embed)", r"\1", _SAME),
    (r"blocks\.(\d+)\.attention\.gating", r"blocks.\1.attn.gating_param", _SAME),
    (r"blocks\.(\d+)\.attention\.(\w+)\.kernel", r"blocks.\1.attn.\2.weight", _TRANSPOSED),
    (r"blocks\.(\d+)\.attention\.(\w+)\.bias", r"blocks.\1.attn.\2.bias", _SAME),
    (r"(.*norm\d?)\.scale", r"\1.weight", _SAME),
    (r"(.*)\.kernel", r"\1.weight", _TRANSPOSED),
    (r"(.*\.bias)", r"\1", _SAME),
)

# Every tensor of the released models, whatever their depth.
_PARAMETER = re.compile(
    r"cls_token|pos_embed|blocks\.\d+\.attn\.gating_param|"
    r"(patch_embed\.proj|norm|head|blocks\.\d+\.(norm[12]|mlp\.fc[12]|attn\.(qkv|qk|v|proj|pos_proj)))"
    r"\.(weight|bias)"
)


def is_parameter(name: str) -> bool:
    """Whether the released models have tensors of that name."""
    return _PARAMETER.fullmatch(name) is not None


def _lookup(name: str) -> tuple[str, _Layout]:
    """What a parameter of ours is called there, and how it lies."""
    for ours, theirs, layout in _TABLE:
        match = re.fullmatch(ours, name)
        if match:
            return match.expand(theirs), layout
    raise KeyError(f"no rule for the parameter '{name}'")


def to_torch(params: Mapping[str, np.ndarray], architecture: Architecture) -> dict[str, np.ndarray]:
    """Our parameters, by dotted name, as the released model's tensors."""
    tensors = {}
    for name, array in params.items():
        theirs, layout = _lookup(name)
        tensors[theirs] = np.ascontiguousarray(layout.to_torch(np.asarray(array), architecture))
    return tensors


@functools.cache
def parameter_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter of ours, by dotted name."""
    model = nnx.eval_shape(lambda: models.build(architecture))
    variables = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {".".join(map(str, path)): variable.shape for path, variable in variables}


def from_torch(
    tensors: Mapping[str, np.ndarray], architecture: Architecture
) -> dict[str, np.ndarray]:
    """The released model's tensors as our parameters.

    Args:
        tensors: theirs, by name.
        architecture: of the model.

    Returns:
        Our parameters by dotted name.

    Raises:
        InputError: some tensor is missing, left over or of the wrong shape; all are listed.
    """
    missing, misshapen, params = [], [], {}
    left_over = set(tensors)
    for name, shape in parameter_shapes(architecture).items():
        theirs, layout = _lookup(name)
        if theirs not in tensors:
            missing.append(theirs)
            continue
        left_over.discard(theirs)
        expected = _shape_there(layout, shape, architecture)
        if tensors[theirs].shape != expected:
            misshapen.append(f"{theirs} is {tensors[theirs].shape}, expected {expected}")
            continue
        params[name] = layout.from_torch(tensors[theirs], architecture)
    problems = [
        f"{what}: {', '.join(names)}"
        for what, names in (
            ("missing", missing),
            ("unexpected", sorted(left_over)),
            ("wrong shape", misshapen),
        )
        if names
    ]
    if problems:
        raise InputError(f"the weights do not fit the model; {'; '.join(problems)}")
    return params


def _shape_there(
    layout: _Layout, shape: tuple[int, ...], architecture: Architecture
) -> tuple[int, ...]:
    """The shape of a parameter in the released model.

    Nothing is allocated: a garbled card can ask for more than there is.
    """
    ours = jax.ShapeDtypeStruct(shape, np.bool_)
    return jax.eval_shape(lambda array: layout.to_torch(array, architecture), ours).shape


def load_tensors(model: VisionTransformer, tensors: Mapping[str, np.ndarray]) -> None:
    """Sets a model's parameters from the released model's tensors, in place.

    Raises:
        InputError: they do not fit; the model is left as it was.
    """
    loaded = from_torch(tensors, model.architecture)
    variables = nnx.to_flat_state(nnx.state(model, nnx.Param))
    arrays = [
        (path, variable.replace(jnp.asarray(array, variable.dtype)))
        for (path, variable), array in zip(variables, loaded.values(), strict=True)
    ]
    nnx.update(model, nnx.from_flat_state(arrays))
