"""Reading tensors from files: .safetensors, PyTorch pickles if PyTorch is installed, shards."""

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
from convit_jax.weights.torch_names import in_timms_spelling, is_parameter

TORCH_SUFFIXES = (".pth", ".pt", ".bin")
# Also read: Lightning checkpoints, and timm's `model_best.pth.tar`.
SUFFIXES = (".safetensors", *TORCH_SUFFIXES, ".ckpt", ".tar")
# An index of shards is named like the unsharded file, followed by this suffix.
INDEX_SUFFIX = ".index.json"

# What servers send, or repositories contain, instead of the weights, by how it begins.
_OTHER_CONTENT = {
    (b"<!doctype", b"<html", b"<?xml"): "a web page, not weights: the address no longer exists, or "
    "requires a login",
    (b"{", b"["): "a message in JSON, not weights: the address no longer exists, or requires a "
    "login",
    (b"version https://git-lfs",): "a git-lfs pointer, not the file itself: run git lfs pull",
}
# The types of safetensors, except those of less than a byte, which are packed and in which no model
# is published. safetensors.numpy lacks the F8 types.
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
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (64, 32, 16, 8)},
    **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (64, 32, 16, 8)},
    "BOOL": np.bool_,
}
# A PyTorch tensor may repeat stored values (strides of 0), so a small file can claim any size. The
# float32 tensors may have this many times the file's bytes, and this many bytes in any case.
_MAX_EXPANSION, _MIN_LIMIT = 16, 64 * 2**20


@dataclasses.dataclass(frozen=True)
class WeightsFile:
    """The content of a weights file.

    Attributes:
        tensors: the model's tensors by name, float32 and contiguous.
        metadata: of a .safetensors file.
        notes: what was chosen, ignored or rounded, one sentence each.
    """

    tensors: dict[str, np.ndarray]
    metadata: Mapping[str, str]
    notes: tuple[str, ...]


def read_tensors(path: epath.PathLike) -> dict[str, np.ndarray]:
    """Return the tensors of a weights file by name, as float32; see `read_weights`.

    Raises:
        InputError: the file does not exist, is of another type or damaged, or holds no tensors.
    """
    return read_weights(path).tensors


def read_weights(
    path: epath.PathLike, entry: str | None = None, name: str | None = None
) -> WeightsFile:
    """Read a weights file, or the shards of an index.

    From a training checkpoint the model's tensors are read, and of those the running average if
    there is one. Wrappers' prefixes (`module.`, `_orig_mod.`, Lightning's `model.`) are removed.

    Args:
        path: a file with one of `SUFFIXES`, or the index of a model's shards.
        entry: which of several models in the file to read, or None for the default.
        name: of the file in messages; its path by default.

    Raises:
        InputError: the file does not exist, is of another type or damaged, or holds no tensors.
        MachineError: the machine cannot read it (permission, memory, storage).
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
            content, metadata, size = _read_file(path, name)
        tensors, choice_notes = choose(content, entry, name)
        tensors = {in_timms_spelling(tensor): array for tensor, array in tensors.items()}
        arrays, notes = _as_float32(tensors, max(_MAX_EXPANSION * size, _MIN_LIMIT), name)
    return WeightsFile(arrays, metadata, (*choice_notes, *notes))


def require_torch(name: str) -> None:
    """Check that PyTorch is installed to read a PyTorch file.

    Raises:
        InputError: it is not.
    """
    if importlib.util.find_spec("torch") is None:
        raise InputError(
            f"{name} is a PyTorch file, which needs PyTorch: pip install torch, or use the "
            ".safetensors file of the same weights (timm/convit_*.fb_in1k on huggingface.co)"
        )


def check_file(path: epath.PathLike, name: str) -> None:
    """Check that a file, other than an index of shards, can be read completely.

    Raises:
        InputError: it is not a weights file, or incomplete.
    """
    with boundary(name):
        _read_file(epath.Path(path), name)


def read_weight_map(index: epath.PathLike, name: str) -> dict[str, str]:
    """Read an index of shards: tensor name → name of a file in the index's directory.

    Raises:
        InputError: it is not such an index, or names files in other directories.
    """
    with boundary(name, "is not an index of shards"):
        index_content = json.loads(epath.Path(index).read_text())
        weight_map = index_content.get("weight_map") if isinstance(index_content, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{name} is not an index of shards: it has no 'weight_map'")
        for file in weight_map.values():
            is_file_name = isinstance(file, str) and pathlib.PurePath(file).name == file
            if not is_file_name or "\\" in file or not file.endswith(SUFFIXES):
                raise InputError(
                    f"{name} names the shard {file!r}: expected the name of a file in the same "
                    f"directory that ends in {', '.join(SUFFIXES)}"
                )
        return weight_map


def _read_shards(index: epath.Path, name: str) -> tuple[dict[str, Any], dict[str, str], int]:
    """Return an index's tensors by name, no metadata, and the total size of the shards."""
    weight_map = read_weight_map(index, name)
    tensors: dict[str, Any] = {}
    total = 0
    for file in sorted(set(weight_map.values())):
        shard = index.parent / file
        if not shard.is_file():
            raise InputError(f"{name}: the shard {file} is missing")
        with boundary(str(shard)):
            content, _, size = _read_file(shard, str(shard))
        total += size
        for tensor in (tensor for tensor, shard in weight_map.items() if shard == file):
            if not isinstance(content, Mapping) or tensor not in content:
                raise InputError(f"{name}: the shard {file} has no '{tensor}'")
            tensors[tensor] = content[tensor]
    return tensors, {}, total


def _read_file(path: epath.Path, name: str) -> tuple[Any, dict[str, str], int]:
    """Return a file's content, metadata and size; the content determines the file's type."""
    content = path.read_bytes()
    if not content:
        raise InputError(f"{name} is empty")
    start = content[:256].lstrip().lower()
    for prefixes, description in _OTHER_CONTENT.items():
        if start.startswith(prefixes):
            raise InputError(f"{name} is {description}")
    is_torch = path.suffix != ".safetensors" and content[8:9] != b"{"
    if is_torch or pytorch_files.is_pytorch_file(content):
        require_torch(name)
        return pytorch_files.parse(content, name), {}, len(content)
    with boundary(name, "is not a whole .safetensors file"):
        with _local_path(path, content) as local, safetensors.safe_open(local, "numpy") as file:
            metadata = file.metadata() or {}
        # `safe_open` has the metadata but no F8 types in NumPy; `deserialize` is the reverse.
        arrays = {
            tensor: _as_array(tensor, stored, name)
            for tensor, stored in safetensors.deserialize(content)
        }
        return arrays, metadata, len(content)


@contextlib.contextmanager
def _local_path(path: epath.Path, content: bytes) -> Iterator[str]:
    """Yield a local path with the file's content: safetensors cannot open remote files."""
    if "://" not in str(path):
        yield str(path)
        return
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        file.write(content)
        file.flush()
        yield file.name


def _as_array(tensor: str, stored: Mapping[str, Any], name: str) -> np.ndarray:
    if stored["dtype"] not in _DTYPES:
        raise InputError(
            f"{name}: the tensor '{tensor}' is of type {stored['dtype']}, expected one of "
            f"{', '.join(_DTYPES)}"
        )
    return np.frombuffer(stored["data"], _DTYPES[stored["dtype"]]).reshape(stored["shape"])


def _as_float32(
    tensors: Mapping[str, Any], limit: int, name: str
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Convert tensors to contiguous float32; return them and notes.

    Integer tensors that are not parameters of a model (counters, indices) are ignored.
    """
    arrays: dict[str, np.ndarray] = {}
    ignored, rounded, total = [], [], 0
    for tensor, value in tensors.items():
        with boundary(f"{name}: the tensor '{tensor}'"):
            total += 4 * int(np.prod(value.shape, dtype=object))
            if total > limit:
                raise InputError(
                    f"{name} claims tensors of more than {limit:,} bytes, far more than it holds"
                )
            array = value if isinstance(value, np.ndarray) else pytorch_files.as_numpy(value)
            if array.dtype.kind in "biu" and not is_parameter(tensor):
                ignored.append(tensor)
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
    if ignored:
        notes.append(f"ignored integer tensors, which are not parameters: {some(ignored, 3)}")
    if rounded:
        notes.append(f"rounded to float32: {some(rounded, 3)}")
    return arrays, notes
