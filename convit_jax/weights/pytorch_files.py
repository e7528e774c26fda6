"""Reading PyTorch files: pickles, which may only call what creates tensors and containers."""

import argparse
import datetime
import io
import pathlib
import pickletools
import re
import types
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from convit_jax.errors import InputError, boundary, some

# The first bytes of files: a zip archive that contains a pickle, or a pickle.
_ARCHIVE = b"PK\x03\x04"
_PICKLE = b"\x80"
# The globals that create tensors. PyTorch allows a few more, which no supported checkpoint needs.
_TENSOR_GLOBALS = re.compile(
    r"torch\.(_utils\._rebuild_(tensor(_v2|_v3)?|parameter(_with_state)?)"
    r"|_tensor\._rebuild_from_type_v2|nn\.parameter\.Parameter|Tensor|Size|device"
    r"|\w+Storage|storage\.\w+Storage|bool|b?float\w+|u?int\w+|complex\w+|serialization\._get_layout)"
    r"|collections\.(OrderedDict|Counter)|_codecs\.encode|builtins\.(set|complex)"
)
# Pickles at the start of a file without an archive: magic number, protocol, system, the content.
_PICKLES_AT_HEAD = 4


def is_pytorch_file(content: bytes) -> bool:
    """Whether a file's content begins like a PyTorch file."""
    return content.startswith(_ARCHIVE) or (
        content.startswith(_PICKLE) and content[1:2] in b"\x02\x03\x04\x05"
    )


def parse(content: bytes, name: str) -> Any:
    """Return what `torch.save` wrote: tensors, usually in dictionaries.

    Arguments of training scripts beside the tensors (`argparse.Namespace`, paths, NumPy scalars)
    are read as well. Everything that could run code is refused.

    Args:
        content: of the file.
        name: of the file, for messages.

    Raises:
        InputError: the file is damaged, or loading it could run code.
    """
    # Imported here because it is optional.
    import torch  # noqa: PLC0415

    with boundary(name, "is not a whole PyTorch file"):
        inert_globals = _inert_globals()
        _check_globals(_pickles(content, name), inert_globals, name)
        allowed: list[Any] = [(target, pickled) for pickled, target in inert_globals.items()]
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            except RuntimeError as error:
                allocation = re.search(r"tried to allocate (\d+) bytes", str(error))
                if allocation and int(allocation[1]) > len(content):
                    raise InputError(
                        f"{name} is damaged: it claims a tensor of {int(allocation[1]):,} bytes "
                        f"in a file of {len(content):,}"
                    ) from error
                raise


def as_numpy(tensor: Any) -> np.ndarray:
    """Return a PyTorch tensor as a NumPy array; floating-point types that NumPy lacks as float32.

    Raises:
        ValueError: it is sparse, quantised or has no values.
    """
    import torch  # noqa: PLC0415  (an optional extra)

    tensor = tensor.detach()
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise ValueError(
            f"it is a sparse, quantised or empty tensor ({tensor.dtype}, {tensor.device}): "
            "expected plain numbers"
        )
    if tensor.dtype.is_floating_point and tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.float()
    return tensor.resolve_conj().resolve_neg().numpy()


def _inert_globals() -> dict[str, Any]:
    """Return, by their names in pickles, the classes of other values in training checkpoints.

    Creating their instances has no side effects; some are replaced by simpler classes.
    """
    classes: dict[str, Any] = {
        "argparse.Namespace": argparse.Namespace,
        "types.SimpleNamespace": types.SimpleNamespace,
        "collections.defaultdict": _plain_dictionary,
        "numpy.ndarray": _Array,
        "numpy.dtype": np.dtype,
        "torch.torch_version.TorchVersion": str,
    }
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        classes[f"{module}.scalar"] = _scalar
        classes[f"{module}._reconstruct"] = _Array
    # The types of each numpy.dtype, which PyTorch requires in order to set its state.
    for class_name in filter(lambda name: name.endswith("DType"), dir(np.dtypes)):
        classes[f"numpy.dtypes.{class_name}"] = getattr(np.dtypes, class_name)
    # The factories of defaultdicts.
    classes |= {f"builtins.{cls.__name__}": cls for cls in (dict, float, frozenset, int, list)}
    for class_name in ("date", "datetime", "time", "timedelta", "timezone"):
        classes[f"datetime.{class_name}"] = getattr(datetime, class_name)
    for module in ("pathlib", "pathlib._local"):
        for class_name in ("Path", "PosixPath", "PurePath", "PurePosixPath"):
            classes[f"{module}.{class_name}"] = pathlib.PurePosixPath
        for class_name in ("WindowsPath", "PureWindowsPath"):
            classes[f"{module}.{class_name}"] = pathlib.PureWindowsPath
    for module in (
        "pytorch_lightning.utilities.parsing",
        "lightning.pytorch.utilities.parsing",
        "lightning_fabric.utilities.data",
        "lightning.fabric.utilities.data",
    ):
        classes[f"{module}.AttributeDict"] = _PlainDictionary
    return classes


class _Array(np.ndarray):
    """Replaces numpy.ndarray and numpy's `_reconstruct`, which could allocate an array of any size.

    It has no elements until its state is set, like pickled arrays.
    """

    def __new__(cls, *_: Any) -> "_Array":
        return super().__new__(cls, (0,))


def _scalar(dtype: np.dtype, value: bytes) -> Any:
    """Replaces numpy's `scalar`, which without a value allocates a scalar of any size."""
    return np.frombuffer(value, dtype)[0]


class _PlainDictionary:
    """Replaces a subclass of dict: a dict is created instead."""

    def __new__(cls, *arguments: Any) -> dict[Any, Any]:  # type: ignore[misc]
        return dict(*arguments)


def _plain_dictionary(*arguments: Any) -> dict[Any, Any]:
    """Replaces `defaultdict(factory, …)`; the factory is unused."""
    return dict(*arguments[1:])


def _pickles(content: bytes, name: str) -> Iterator[io.BytesIO]:
    """Yield the pickles of a file.

    Raises:
        InputError: its archive is not PyTorch's, or compressed (a small file could expand to any
            size).
    """
    if not content.startswith(_ARCHIVE):
        stream = io.BytesIO(content)
        yield from (stream for _ in range(_PICKLES_AT_HEAD))
        return
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        if any(entry.endswith("/constants.pkl") for entry in names):
            raise InputError(
                f"{name} was not read: it is a TorchScript program, not weights; save its tensors: "
                "torch.save(model.state_dict(), path)"
            )
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        if not stored or sum(entry.file_size for entry in entries) > len(content):
            raise InputError(f"{name} was not read: its archive is compressed, unlike PyTorch's")
        pickle_names = [entry for entry in names if entry.endswith("data.pkl")]
        if len(pickle_names) != 1:
            raise InputError(f"{name} was not read: it is an archive, but not PyTorch's")
        yield io.BytesIO(archive.read(pickle_names[0]))


def _check_globals(
    pickles: Iterator[io.BytesIO], inert_globals: Mapping[str, Any], name: str
) -> None:
    """Check that pickles name only globals that create tensors or are inert.

    Raises:
        InputError: they name others.
    """
    for stream in pickles:
        others = set(_globals(stream, name)) - set(inert_globals)
        refused = sorted(other for other in others if not _TENSOR_GLOBALS.fullmatch(other))
        if refused:
            raise InputError(_refusal(refused, name))


def _globals(stream: io.BytesIO, name: str) -> Iterator[str]:
    """Yield the classes and functions that a pickle names, as `module.name`."""
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name == "PROTO" and int(argument or 0) > 3:
            raise InputError(
                f"{name} was not read: it was saved with pickle protocol {argument}, expected 2, "
                "as written by torch.save(model.state_dict(), path)"
            )
        if opcode.name == "GLOBAL":
            module, _, global_name = str(argument).partition(" ")
            yield f"{'builtins' if module == '__builtin__' else module}.{global_name}"


def _refusal(refused: list[str], name: str) -> str:
    names = some(refused, 3)
    if any(global_name.startswith("torch.nn.modules.") for global_name in refused):
        return (
            f"{name} was not read: it holds a whole model ({names}), and loading that would run "
            "code; save its tensors: torch.save(model.state_dict(), path)"
        )
    return (
        f"{name} was not read: it holds {names}, and loading that could run code; save only the "
        "tensors: torch.save(model.state_dict(), path)"
    )
