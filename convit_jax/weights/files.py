"""Reading tensors from files: .safetensors, and PyTorch's pickles where torch is installed."""

import importlib.util
import pathlib
import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from convit_jax.errors import InputError

TORCH_SUFFIXES = (".pth", ".pt", ".bin")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
# Where training checkpoints keep the model, in order of preference.
_NESTED = ("model", "state_dict", "model_state_dict")
# What data-parallel wrappers put before each name.
_WRAPPER = "module."


def read_tensors(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a weights file by name.

    A training checkpoint of the released code (`{"model": …, "epoch": …}`) gives its model's;
    prefixes of data-parallel wrappers are taken off.

    Args:
        path: a .safetensors, .pth, .pt or .bin file.

    Raises:
        InputError: the file is not there, of another kind, damaged, or holds no tensors.
    """
    path = pathlib.Path(path)
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise InputError(f"no weights at {path}: the file does not exist")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    return _read_torch(path)


def read_safetensors(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a .safetensors file by name.

    Raises:
        InputError: the file is not there, or is no whole safetensors file.
    """
    try:
        return safetensors.numpy.load_file(path)
    except FileNotFoundError as error:
        raise InputError(f"no weights at {path}: the file does not exist") from error
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a whole .safetensors file: {error}") from error


def _read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
    if importlib.util.find_spec("torch") is None:
        raise InputError(
            f"{path} is a PyTorch file, which takes PyTorch to read: pip install torch, or take "
            "the .safetensors file of the same weights (timm/convit_*.fb_in1k on huggingface.co)"
        )
    import torch  # noqa: PLC0415

    try:
        # Never anything but tensors and plain containers: a pickle could run any code.
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = "it would run code or is no PyTorch file" if _is_pickle(path) else "it is damaged"
        raise InputError(f"{path} was not read: {reason}") from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} is not a whole PyTorch file: {line}") from error
    return _tensors_in(content, path)


def _is_pickle(path: pathlib.Path) -> bool:
    """Whether the file begins as a pickle or as PyTorch's archive of one."""
    with path.open("rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def _tensors_in(content: Any, path: pathlib.Path) -> dict[str, np.ndarray]:
    for name in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}, expected tensors by name")
    tensors = {
        str(name).removeprefix(_WRAPPER): tensor.float().numpy()
        for name, tensor in content.items()
        if hasattr(tensor, "float") and hasattr(tensor, "numpy")
    }
    if not tensors:
        raise InputError(
            f"{path} holds no tensors, only {', '.join(map(str, content)) or 'nothing'}"
        )
    return tensors
