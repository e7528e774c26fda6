"""Reading tensors from files: .safetensors, PyTorch's pickles where torch is installed, shards."""

import contextlib
import dataclasses
import importlib.util
import json
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
from etils import epath

from convit_jax.errors import InputError, boundary, some
from convit_jax.weights import pytorch_files
from convit_jax.weights.choosing import choose
from convit_jax.weights.torch_names import is_parameter

TORCH_SUFFIXES = (".pth", ".pt", ".bin")
# What is read besides: Lightning's checkpoints, and timm's `model_best.pth.tar`.
SUFFIXES = (".safetensors", *TORCH_SUFFIXES, ".ckpt", ".tar")
# The list of a model's shards ends so, after the name that the whole file would have.
INDEX_SUFFIX = ".index.json"

# What is sent, or lies, in a file's place.
_NO_WEIGHTS = {
    (b"<!doctype", b"<html", b"<?xml"): "a web page, not weights: what was at that address is "
    "there no longer, or takes a login",
    (b"{", b"["): "a message in JSON, not weights: what was at that address is there no longer, or "
    "takes a login",
    (b"version https://git-lfs",): "git-lfs's note of where the file is: git lfs pull fetches it",
}
# safetensors' types. Those of less than a byte come packed, and no model is published in them.
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "F8_E4M3": jnp.float8_e4m3fn,
    "F8_E5M2": jnp.float8_e5m2,
    "F8_E8M0": jnp.float8_e8m0fnu,
    "F8_E4M3FNUZ": jnp.float8_e4m3fnuz,
    "F8_E5M2FNUZ": jnp.float8_e5m2fnuz,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
# A tensor may repeat what a file holds once (strides of 0), so a small file can claim any size.
# What is read may be this many times the file, and this many bytes in any case.
_MOST_TIMES, _AT_LEAST = 16, 64 * 2**20


@dataclasses.dataclass(frozen=True)
class WeightsFile:
    """What a file holds.

    Attributes:
        tensors: the model's, by name: float32, contiguous.
        metadata: what a .safetensors file says besides.
        notes: what was chosen, left out or rounded, a sentence each.
    """

    tensors: dict[str, np.ndarray]
    metadata: Mapping[str, str]
    notes: tuple[str, ...]


def read_tensors(path: epath.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a weights file by name, as float32; see `read_weights`.

    Raises:
        InputError: the file is not there, of another kind, damaged, or holds no tensors.
    """
    return read_weights(path).tensors


def read_weights(
    path: epath.PathLike, entry: str | None = None, name: str | None = None
) -> WeightsFile:
    """What a weights file holds, whole or in shards.

    Of a training checkpoint the model's tensors are taken, the running average where there is one;
    prefixes of wrappers (`module.`, `_orig_mod.`, Lightning's `model.`) are taken off.

    Args:
        path: a file with one of `SUFFIXES`, or the index of a model's shards.
        entry: which of several models in the file to take, or None for the usual one.
        name: what to call the file in messages; by its path unless said otherwise.

    Raises:
        InputError: the file is not there, of another kind, damaged, or holds no tensors.
        MachineError: it cannot be read for want of permission, memory or such.
    """
    path = epath.Path(path)
    name = name or str(path)
    is_index = path.name.endswith(INDEX_SUFFIX)
    if path.suffix not in SUFFIXES and not is_index:
        raise InputError(f"{name}: expected a file that ends in {', '.join(SUFFIXES)}")
    with boundary(name):
        if not path.is_file():
            raise InputError(f"no weights at {name}: the file does not exist")
        if is_index:
            content, metadata, size = _read_shards(path, name)
        else:
            content, metadata, size = _read_one(path, name)
        tensors, chosen = choose(content, entry, name)
        arrays, notes = _as_float32(tensors, max(_MOST_TIMES * size, _AT_LEAST), name)
    return WeightsFile(arrays, metadata, (*chosen, *notes))


def require_torch(name: str) -> None:
    """Refuses a file of PyTorch's where PyTorch is not installed.

    Raises:
        InputError: it says what to do.
    """
    if importlib.util.find_spec("torch") is None:
        raise InputError(
            f"{name} is a PyTorch file, which takes PyTorch to read: pip install torch, or take "
            "the .safetensors file of the same weights (timm/convit_*.fb_in1k on huggingface.co)"
        )


def check_file(path: epath.PathLike, name: str) -> None:
    """Reads a file, shards excepted, to its end.

    Raises:
        InputError: it is no weights file, or not a whole one.
    """
    with boundary(name):
        _read_one(epath.Path(path), name)


def shards_of(index: epath.PathLike, name: str) -> dict[str, str]:
    """Where an index of shards says that each tensor is: tensor → file name beside the index.

    Raises:
        InputError: it is no such index, or names files elsewhere.
    """
    with boundary(name, "is no index of shards"):
        listed = json.loads(epath.Path(index).read_text())
        places = listed.get("weight_map") if isinstance(listed, dict) else None
        if not isinstance(places, dict) or not places:
            raise InputError(f"{name} is no index of shards: it has no 'weight_map'")
        for file in places.values():
            plain = isinstance(file, str) and pathlib.PurePath(file).name == file
            if not plain or "\\" in file or not file.endswith(SUFFIXES):
                raise InputError(
                    f"{name} names the shard {file!r}: expected the name of a file beside it that "
                    f"ends in {', '.join(SUFFIXES)}"
                )
        return places


def _read_shards(index: epath.Path, name: str) -> tuple[dict[str, Any], dict[str, str], int]:
    """The tensors of every shard, by the index's names, and the bytes that they are read from."""
    places = shards_of(index, name)
    tensors: dict[str, Any] = {}
    total = 0
    for file in sorted(set(places.values())):
        shard = index.parent / file
        if not shard.is_file():
            raise InputError(f"{name}: the shard {file} is missing")
        with boundary(str(shard)):
            content, _, size = _read_one(shard, str(shard))
        total += size
        for tensor in (tensor for tensor, place in places.items() if place == file):
            if not isinstance(content, Mapping) or tensor not in content:
                raise InputError(f"{name}: the shard {file} has no '{tensor}'")
            tensors[tensor] = content[tensor]
    return tensors, {}, total


def _read_one(path: epath.Path, name: str) -> tuple[Any, dict[str, str], int]:
    """What a file holds, its metadata and its size; the content says of which kind it is."""
    content = path.read_bytes()
    if not content:
        raise InputError(f"{name} is empty")
    start = content[:256].lstrip().lower()
    for beginnings, what in _NO_WEIGHTS.items():
        if start.startswith(beginnings):
            raise InputError(f"{name} is {what}")
    is_torch = path.suffix != ".safetensors" and content[8:9] != b"{"
    if is_torch or pytorch_files.looks_like(content):
        require_torch(name)
        return pytorch_files.parse(content, name), {}, len(content)
    with boundary(name, "is not a whole .safetensors file"):
        with _on_disk(path, content) as local, safetensors.safe_open(local, "numpy") as file:
            metadata = file.metadata() or {}
        stored = dict(safetensors.deserialize(content))
        arrays = {tensor: _array(tensor, what, name) for tensor, what in stored.items()}
        return arrays, metadata, len(content)


@contextlib.contextmanager
def _on_disk(path: epath.Path, content: bytes) -> Iterator[str]:
    """The path of a file on this machine: safetensors opens no other."""
    if "://" not in str(path):
        yield str(path)
        return
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        file.write(content)
        file.flush()
        yield file.name


def _array(tensor: str, stored: Mapping[str, Any], name: str) -> np.ndarray:
    if stored["dtype"] not in _DTYPES:
        raise InputError(
            f"{name}: the tensor '{tensor}' is of type {stored['dtype']}, expected one of "
            f"{', '.join(_DTYPES)}"
        )
    return np.frombuffer(stored["data"], _DTYPES[stored["dtype"]]).reshape(stored["shape"])


def _as_float32(
    tensors: Mapping[str, Any], most: int, name: str
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Tensors as contiguous float32, and what is to be said of that.

    Whole numbers that are no parameter of a model (counters, indices) are left out.
    """
    arrays: dict[str, np.ndarray] = {}
    left_out, rounded, total = [], [], 0
    for tensor, value in tensors.items():
        with boundary(f"{name}: the tensor '{tensor}'"):
            total += 4 * int(np.prod(value.shape, dtype=object))
            if total > most:
                raise InputError(
                    f"{name} claims tensors of more than {most:,} bytes, far more than it holds"
                )
            array = value if isinstance(value, np.ndarray) else pytorch_files.as_numpy(value)
            if array.dtype.kind in "biu" and not is_parameter(tensor):
                left_out.append(tensor)
                continue
            if array.dtype.kind not in "biufV":
                raise InputError(f"{name}: the tensor '{tensor}' is of type {array.dtype}")
            with np.errstate(over="ignore"):
                arrays[tensor] = np.asarray(array, np.float32, order="C")
            may_round = array.dtype.itemsize > 4 or array.dtype in (np.int32, np.uint32)
            if may_round and not np.array_equal(arrays[tensor], array, array.dtype.kind == "f"):
                rounded.append(tensor)
    if not arrays:
        raise InputError(f"{name} holds no tensors")
    notes = []
    if left_out:
        notes.append(f"left out, whole numbers that no model here has: {some(left_out, 3)}")
    if rounded:
        notes.append(f"rounded to float32: {some(rounded, 3)}")
    return arrays, notes
