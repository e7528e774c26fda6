"""Reading tensors from files: .safetensors, and PyTorch's pickles where torch is installed."""

import importlib.util
import io
import json
import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from convit_jax.errors import InputError

TORCH_SUFFIXES = (".pth", ".pt", ".bin")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
# Where training checkpoints keep the model, in order of preference.
_NESTED = ("model", "state_dict", "model_state_dict")
# What data-parallel wrappers put before each name.
_WRAPPER = "module."
# How files begin: a pickle or PyTorch's archive of one, and what is sent in a file's place.
_PICKLES = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_WEB_PAGE = (b"<!doctype html", b"<html")


def read_tensors(path: epath.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a weights file by name, as float32.

    A training checkpoint of the released code (`{"model": …, "epoch": …}`) gives its model's;
    prefixes of data-parallel wrappers are taken off.

    Args:
        path: a .safetensors, .pth, .pt or .bin file.

    Raises:
        InputError: the file is not there, of another kind, damaged, or holds no tensors.
    """
    path = epath.Path(path)
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise InputError(f"no weights at {path}: the file does not exist")
    content = path.read_bytes()
    if not content:
        raise InputError(f"{path} is empty")
    refuse_web_page(content[:256], str(path))
    if path.suffix == ".safetensors":
        found = _parse_safetensors(content, path)
    else:
        found = _parse_torch(content, path)
    tensors = {name.removeprefix(_WRAPPER): array for name, array in found.items()}
    if not tensors:
        raise InputError(f"{path} holds no tensors")
    return {name: np.asarray(array, np.float32) for name, array in tensors.items()}


def refuse_web_page(start: bytes, name: str) -> None:
    """Servers send a page, saying so, where a file is no longer there.

    Raises:
        InputError: `start`, a file's first bytes, are a web page's.
    """
    if start.lstrip().lower().startswith(_WEB_PAGE):
        raise InputError(
            f"{name} is a web page, not weights: what was at that address is there no longer, or "
            "takes a login"
        )


def read_metadata(path: epath.PathLike) -> dict[str, str]:
    """What a whole .safetensors file says besides its tensors; other files say nothing."""
    path = epath.Path(path)
    if path.suffix != ".safetensors":
        return {}
    # The format: the header's length in eight bytes, the header as JSON, the tensors.
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)).get("__metadata__", {})


def _parse_safetensors(content: bytes, path: epath.Path) -> dict[str, np.ndarray]:
    try:
        return safetensors.numpy.load(content)
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is not a whole .safetensors file: {error}") from error


def _parse_torch(content: bytes, path: epath.Path) -> dict[str, np.ndarray]:
    if importlib.util.find_spec("torch") is None:
        raise InputError(
            f"{path} is a PyTorch file, which takes PyTorch to read: pip install torch, or take "
            "the .safetensors file of the same weights (timm/convit_*.fb_in1k on huggingface.co)"
        )
    # Imported here: an optional extra.
    import torch  # noqa: PLC0415

    try:
        # Never anything but tensors and plain containers: a pickle could run any code.
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = "it is damaged or no PyTorch file"
        if content.startswith(_PICKLES):
            reason = "it is damaged, or would run code when it is loaded"
        raise InputError(f"{path} was not read: {reason}") from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0]
        raise InputError(f"{path} is not a whole PyTorch file: {reason}") from error
    return _tensors_in(loaded, path)


def _tensors_in(content: Any, path: epath.Path) -> dict[str, np.ndarray]:
    for name in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}, expected tensors by name")
    tensors = {
        str(name): tensor.float().numpy()
        for name, tensor in content.items()
        if hasattr(tensor, "float") and hasattr(tensor, "numpy")
    }
    if not tensors:
        raise InputError(
            f"{path} holds no tensors, only {', '.join(map(str, content)) or 'nothing'}"
        )
    return tensors
