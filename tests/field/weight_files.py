"""Builders of small unusual weights files."""

import io
import json
import pickle
import shutil
import struct
import zipfile

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


def put_into_hub_cache(cache, repository, file):
    """Copy a weights file into the cache of a repository of the Hub, and return its path there."""
    root = cache / f"models--{repository.replace('/', '--')}"
    snapshot = root / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0123")
    return shutil.copy(file, snapshot / "model.safetensors")


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
