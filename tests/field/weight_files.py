"""Builders of small unusual weights files."""

import importlib.util
import io
import json
import pickle
import struct
import zipfile

import pytest

torch_only = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="PyTorch is not installed: .pth files are an optional extra",
)

# The types of safetensors that these tests write, and their bytes per element.
ITEM_SIZES = {"F32": 4, "BF16": 2, "F64": 8, "I64": 8, "C64": 8, "F8_E4M3": 1}


def safetensors_file(tensors, metadata="absent", data=b""):
    """Build a .safetensors file, of zeros, from {name: (type, shape)} or from raw header bytes."""
    if isinstance(tensors, bytes):
        header = tensors
    else:
        entries, end = {}, 0
        for name, (kind, shape) in tensors.items():
            size = ITEM_SIZES[kind]
            for side in shape:
                size *= side
            entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + size]}
            end += size
        if metadata != "absent":
            entries = {"__metadata__": metadata, **entries}
        header, data = json.dumps(entries).encode(), data or bytes(end)
    return struct.pack("<Q", len(header)) + header + data


def pytorch_archive(pickle_bytes, storage=bytes(16), compression=zipfile.ZIP_STORED):
    """Build a PyTorch archive of a pickle and one storage."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as file:
        file.writestr("x/data.pkl", pickle_bytes)
        file.writestr("x/version", "3\n")
        file.writestr("x/byteorder", "little")
        file.writestr("x/data/0", storage)
    return content.getvalue()


def pickled_tensor(numel, size, stride, offset=0):
    """Pickle {"head.weight": a tensor} with any claims about its storage and shape."""

    def number(value):
        return pickle.dumps(value, 2)[2:-1]

    return (
        b"\x80\x02}X\x0b\0\0\0head.weightctorch._utils\n_rebuild_tensor_v2\n"
        b"((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu"
        + number(numel)
        + b"tQ"
        + number(offset)
        + number(size)
        + number(stride)
        + b"\x89ccollections\nOrderedDict\n)RtRs."
    )


def timm_config(**changes):
    """A timm `config.json` of a vision transformer with ten classes."""
    return {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 10,
        "pretrained_cfg": {
            "input_size": [3, 96, 96],
            "interpolation": "bicubic",
            "crop_pct": 0.9,
            "crop_mode": "center",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
        },
    } | changes
