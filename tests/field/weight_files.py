"""Builders of small odd weights files."""

import io
import json
import pickle
import struct
import zipfile

# The JSON types' names of safetensors' types that these tests write, and their bytes an entry.
BYTES = {"F32": 4, "BF16": 2, "F64": 8, "I64": 8, "C64": 8, "F8_E4M3": 1}


def safetensors_file(tensors, metadata="absent", data=b""):
    """A .safetensors file by hand: tensors are {name: (type, shape)} or a raw header in bytes."""
    if isinstance(tensors, bytes):
        header = tensors
    else:
        entries, end = {}, 0
        for name, (kind, shape) in tensors.items():
            size = BYTES[kind]
            for side in shape:
                size *= side
            entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + size]}
            end += size
        if metadata != "absent":
            entries = {"__metadata__": metadata, **entries}
        header, data = json.dumps(entries).encode(), data or bytes(end)
    return struct.pack("<Q", len(header)) + header + data


def archive(pickled, storage=bytes(16), compression=zipfile.ZIP_STORED):
    """PyTorch's archive of a pickle and one storage."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as file:
        file.writestr("x/data.pkl", pickled)
        file.writestr("x/version", "3\n")
        file.writestr("x/byteorder", "little")
        file.writestr("x/data/0", storage)
    return content.getvalue()


def claim(numel, size, stride, offset=0):
    """The pickle of {"head.weight": a tensor} that claims what it likes of a storage."""

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
    """A `config.json` as timm's repositories have it, of a vision transformer of ten classes."""
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
