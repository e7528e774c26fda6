"""PyTorch's files: pickles, of which nothing is executed but what makes tensors and containers."""

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

# How files begin: an archive with a pickle inside, or a pickle.
_ARCHIVE = b"PK\x03\x04"
_PICKLE = b"\x80"
# What makes tensors. PyTorch allows a little more, which no checkpoint of ours needs.
_OF_TENSORS = re.compile(
    r"torch\.(_utils\._rebuild_(tensor(_v2|_v3)?|parameter(_with_state)?)"
    r"|_tensor\._rebuild_from_type_v2|nn\.parameter\.Parameter|Tensor|Size|device"
    r"|\w+Storage|storage\.\w+Storage|bool|b?float\w+|u?int\w+|complex\w+|serialization\._get_layout)"
    r"|collections\.(OrderedDict|Counter)|_codecs\.encode|builtins\.(set|complex)"
)
# The pickles at the head of a file without an archive: two numbers, the system, what was saved.
_PICKLES_AT_HEAD = 4


def looks_like(content: bytes) -> bool:
    """Whether bytes begin as PyTorch's files do."""
    return content.startswith(_ARCHIVE) or (
        content.startswith(_PICKLE) and content[1:2] in b"\x02\x03\x04\x05"
    )


def parse(content: bytes, name: str) -> Any:
    """What `torch.save` wrote: tensors, mostly in dictionaries.

    The arguments of training scripts that lie beside (`argparse.Namespace`, paths, numpy's numbers)
    are read as well, and everything that could run code is refused.

    Args:
        content: of the file.
        name: of the file.

    Raises:
        InputError: the file is damaged, or would run code.
    """
    # Imported here: an optional extra.
    import torch  # noqa: PLC0415

    with boundary(name, "is not a whole PyTorch file"):
        inert = _inert()
        _check_globals(_pickles(content, name), inert, name)
        allowed = [(what, called) for called, what in inert.items()]
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            except RuntimeError as error:
                claimed = re.search(r"tried to allocate (\d+) bytes", str(error))
                if claimed and int(claimed[1]) > len(content):
                    raise InputError(
                        f"{name} is damaged: it claims a tensor of {int(claimed[1]):,} bytes in a "
                        f"file of {len(content):,}"
                    ) from error
                raise


def as_numpy(tensor: Any) -> np.ndarray:
    """A tensor of PyTorch's in numpy, as it lies in memory; types that numpy lacks as float32.

    Raises:
        ValueError: it is sparse, quantised or without values.
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


def _inert() -> dict[str, Any]:
    """Classes, by what pickles call them, of what training scripts save beside tensors.

    None of them does anything when it is made; of some a plainer one takes the place.
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
    # The type of each numpy.dtype, by which PyTorch knows what it may fill.
    for kind in filter(lambda name: name.endswith("DType"), dir(np.dtypes)):
        classes[f"numpy.dtypes.{kind}"] = getattr(np.dtypes, kind)
    # What a defaultdict makes where a key is missing.
    classes |= {f"builtins.{kind.__name__}": kind for kind in (dict, float, frozenset, int, list)}
    for kind in ("date", "datetime", "time", "timedelta", "timezone"):
        classes[f"datetime.{kind}"] = getattr(datetime, kind)
    for module in ("pathlib", "pathlib._local"):
        for kind in ("Path", "PosixPath", "PurePath", "PurePosixPath"):
            classes[f"{module}.{kind}"] = pathlib.PurePosixPath
        for kind in ("WindowsPath", "PureWindowsPath"):
            classes[f"{module}.{kind}"] = pathlib.PureWindowsPath
    for module in (
        "pytorch_lightning.utilities.parsing",
        "lightning.pytorch.utilities.parsing",
        "lightning_fabric.utilities.data",
        "lightning.fabric.utilities.data",
    ):
        classes[f"{module}.AttributeDict"] = _PlainDictionary
    return classes


class _Array(np.ndarray):
    """Stands for an array of numpy's, and for what makes one.

    It has no elements until its state is set. Pickled arrays begin so too; but a pickle could ask
    for one of any size.
    """

    def __new__(cls, *_: Any) -> "_Array":
        return super().__new__(cls, (0,))


def _scalar(kind: np.dtype, value: bytes) -> Any:
    """Stands for numpy's `scalar`, which without a value makes one of any size."""
    return np._core.multiarray.scalar(kind, value)


class _PlainDictionary:
    """Stands for a subclass of dict: a dict is made in its place."""

    def __new__(cls, *arguments: Any) -> dict[Any, Any]:  # type: ignore[misc]
        return dict(*arguments)


def _plain_dictionary(*arguments: Any) -> dict[Any, Any]:
    """Stands for `defaultdict(factory, …)`: the factory is of no use here."""
    return dict(*arguments[1:])


def _pickles(content: bytes, name: str) -> Iterator[io.BytesIO]:
    """The pickles of a file that are about to be loaded.

    Raises:
        InputError: its archive is none of PyTorch's, or compressed: a small file could hold much.
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
            raise InputError(
                f"{name} was not read: its archive is compressed, which PyTorch's never are"
            )
        pickled = [entry for entry in names if entry.endswith("data.pkl")]
        if len(pickled) != 1:
            raise InputError(f"{name} was not read: it is an archive, but none of PyTorch's")
        yield io.BytesIO(archive.read(pickled[0]))


def _check_globals(pickles: Iterator[io.BytesIO], inert: Mapping[str, Any], name: str) -> None:
    """Refuses what pickles name besides tensors and what is inert."""
    for pickled in pickles:
        named = set(_globals(pickled, name))
        refused = sorted(n for n in named if n not in inert and not _OF_TENSORS.fullmatch(n))
        if refused:
            raise InputError(_refusal(refused, name))


def _globals(pickled: io.BytesIO, name: str) -> Iterator[str]:
    """What a pickle names: `module.name` of classes and functions."""
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name == "PROTO" and argument > 3:
            raise InputError(
                f"{name} was not read: it was saved with pickle protocol {argument}, expected 2, "
                "as torch.save(model.state_dict(), path) has it"
            )
        if opcode.name == "GLOBAL":
            module, _, what = argument.partition(" ")
            yield f"{'builtins' if module == '__builtin__' else module}.{what}"


def _refusal(refused: list[str], name: str) -> str:
    named = some(refused, 3)
    if any(what.startswith("torch.nn.modules.") for what in refused):
        return (
            f"{name} was not read: it holds a whole model ({named}), and loading that would run "
            "code; save its tensors: torch.save(model.state_dict(), path)"
        )
    return (
        f"{name} was not read: it holds {named}, and loading that could run code; save the tensors "
        "alone: torch.save(model.state_dict(), path)"
    )
