"""Random corruption of files, by their bytes and by their structure, for `fuzz.py`.

Every function is deterministic in its bytes and its `random.Random`.
"""

import copy
import io
import json
import os
import pickle
import random
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Random = random.Random
Garbler = Callable[[bytes, Random], bytes]

PNG = b"\x89PNG\r\n\x1a\n"
_ZIP_BOMB = zlib.compress(bytes(1 << 24))
_NUMBERS = (0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1)
_VALUES = (
    None, True, False, 0, 1, -1, 3, 2**31, 2**63, 10**30, 0.0, 0.5, -0.5, 1e-300, 1e300,
    float("nan"), float("inf"), "", "x", "F64", "BF16", "float32", "\ud800", "é" * 300, [], {},
    [0], [1, 2, 3], [-1], [2**40, 2**40], {"": 0}, {"a": {"b": None}}, [[[]]],
)  # fmt: skip


def bytewise(content: bytes, rng: Random) -> bytes:
    """Apply one to four changes that are independent of the file format."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        content = rng.choice(_BYTEWISE)(content, rng)
    return content


def _flip_bits(content: bytes, rng: Random) -> bytes:
    out = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8, 32)) if out else 0):
        out[_random_offset(out, rng)] ^= 1 << rng.randrange(8)
    return bytes(out)


def _random_offset(content: bytes | bytearray, rng: Random) -> int:
    """Return a random offset, half of the time within the first 200 bytes, where headers are."""
    end = len(content) if rng.random() < 0.5 else min(len(content), 200)
    return rng.randrange(end)


def _overwrite(content: bytes, rng: Random) -> bytes:
    """Overwrite one to eight bytes by a number, in either byte order."""
    if not content:
        return content
    size = rng.choice((1, 2, 4, 8))
    number = rng.choice((*_NUMBERS, len(content), rng.getrandbits(8 * size)))
    new = (number & (1 << 8 * size) - 1).to_bytes(size, rng.choice(("little", "big")))
    offset = _random_offset(content, rng)
    return content[:offset] + new + content[offset + size :]


def _truncate(content: bytes, rng: Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _delete(content: bytes, rng: Random) -> bytes:
    first, last = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    return content[:first] + content[last:]


def _repeat(content: bytes, rng: Random) -> bytes:
    first, last = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    return content[:last] + content[first:last] * rng.choice((1, 2, 8)) + content[last:]


def _insert(content: bytes, rng: Random) -> bytes:
    offset = rng.randrange(len(content) + 1)
    return content[:offset] + rng.randbytes(rng.choice((1, 2, 16, 300))) + content[offset:]


def _copy(content: bytes, rng: Random) -> bytes:
    """Overwrite one part by a copy of another."""
    size = rng.choice((4, 16, 64, 512))
    source, target = (rng.randrange(len(content) + 1) for _ in range(2))
    return content[:target] + content[source : source + size] + content[target + size :]


_BYTEWISE: tuple[Garbler, ...] = (
    _flip_bits, _flip_bits, _overwrite, _overwrite, _truncate, _delete, _repeat, _insert, _copy,
)  # fmt: skip


def json_tree(value: Any, rng: Random) -> Any:
    """Return a copy of a JSON tree with some values replaced, deleted, renamed or nested."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 3))):
        nodes = [node for node in _nodes(value) if node]
        if not nodes:
            return copy.deepcopy(rng.choice(_VALUES))
        node = rng.choice(nodes)
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        change = rng.randrange(6)
        if change == 0:
            del node[key]
        elif change == 1 and isinstance(node, dict):
            node[rng.choice(("", "x", f"{key}x", "__class__"))] = node.pop(key)
        elif change == 2:
            items = [item for node in nodes for item in _items(node)]
            node[key] = copy.deepcopy(rng.choice(items))
        elif change == 3:
            node[key] = rng.choice(([node[key]], {"x": node[key]}, [node[key]] * 3))
        elif change == 4 and isinstance(node[key], int | float):
            node[key] = node[key] * rng.choice((-1, 0, 2, 1000)) + rng.choice((-1, 0, 1))
        else:
            node[key] = copy.deepcopy(rng.choice(_VALUES))
    return value


def _nodes(value: Any) -> Iterator[Any]:
    """Yield all dictionaries and lists of a JSON tree."""
    if isinstance(value, dict | list):
        yield value
        for item in _items(value):
            yield from _nodes(item)


def _items(node: Any) -> list[Any]:
    return list(node.values() if isinstance(node, dict) else node)


def json_text(content: bytes, rng: Random) -> bytes:
    """Garble a JSON file by its values, its nesting, or its bytes."""
    change = rng.randrange(10)
    if change < 2:
        return bytewise(content, rng)
    if change == 2:
        depth = rng.choice((50, 2000, 200_000))
        return b'{"a":' * depth + b"1" + b"}" * depth if rng.random() < 0.5 else b"[" * depth
    if change == 3:
        return content.replace(b"1", b"1" * rng.choice((20, 5000)), 1)
    return json.dumps(json_tree(json.loads(content), rng)).encode()


def safetensors(content: bytes, rng: Random) -> bytes:
    """Garble a .safetensors file by its header or its bytes."""
    if rng.random() < 0.4:
        return bytewise(content, rng)
    length = int.from_bytes(content[:8], "little")
    header, tensors = content[8 : 8 + length], content[8 + length :]
    if rng.random() < 0.2:
        tensors = bytewise(tensors, rng)
    new = json_text(header, rng)
    declared = len(new) if rng.random() < 0.9 else rng.choice((*_NUMBERS, 2**63, len(content)))
    return declared.to_bytes(8, "little") + new + tensors


def card(content: bytes, rng: Random, key: str = "convit_jax") -> bytes:
    """Garble only the card of a .safetensors file written by this package."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"][key] = json_text(header["__metadata__"][key].encode(), rng).decode(
        errors="replace"
    )
    new = json.dumps(header).encode()
    return len(new).to_bytes(8, "little") + new + content[8 + length :]


class _Call:
    """Pickles to a call that an unrestricted unpickler makes."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self._call


def torch_file(canary: str) -> Garbler:
    """Return a garbler of PyTorch files; some of its pickles would create the file `canary`."""

    def malicious_pickle(rng: Random) -> bytes:
        command = f"touch {canary}"
        calls = (
            _Call(os.system, command), _Call(subprocess.run, ["touch", canary]),
            _Call(exec, f"open({canary!r}, 'w')"), _Call(eval, f"open({canary!r}, 'w')"),
            # Eight gigabytes, also by names that checkpoints of training scripts legitimately use.
            _Call(bytearray, 1 << 33), _Call(np.ndarray, (1 << 33,)), _Call(list, range(1 << 40)),
            _Call(np._core.multiarray._reconstruct, np.ndarray, (1 << 33,), b"b"),
        )  # fmt: skip
        call = rng.choice(calls)
        return pickle.dumps(
            rng.choice((call, {"model": call}, {"model": {"head.weight": call}}, [call] * 3)),
            protocol=rng.choice((0, 2, 2, 2, 2, 4)),
        )

    def garble(content: bytes, rng: Random) -> bytes:
        change = rng.randrange(10)
        if change == 0:
            return malicious_pickle(rng)
        if change < 4 or not zipfile.is_zipfile(io.BytesIO(content)):
            # The legacy format consists of five consecutive pickles and the tensors' bytes.
            return bytewise(malicious_pickle(rng) + content if change == 1 else content, rng)
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
            chosen = rng.choice(old.namelist())
            for name in old.namelist():
                part = old.read(name)
                if name.endswith("data.pkl") and change < 8:
                    part = malicious_pickle(rng) if change == 4 else _garbled_pickle(part, rng)
                elif name == chosen and change >= 7:
                    if rng.random() < 0.2:
                        continue
                    name, part = rng.choice((name, name + "x")), bytewise(part, rng)
                compression = zipfile.ZIP_DEFLATED if rng.random() < 0.02 else zipfile.ZIP_STORED
                new.writestr(name, part, compression)
        return out.getvalue()

    return garble


def _garbled_pickle(content: bytes, rng: Random) -> bytes:
    """Change opcodes and arguments in place, so that most of the content stays a pickle."""
    if rng.random() < 0.3:
        return bytewise(content, rng)
    out = bytearray(content)
    for _ in range(rng.choice((1, 2, 3))):
        offset = rng.randrange(len(out))
        opcodes = b"cRbi()}]eusKMJNht.0q\x85\x86\x87\x88\x89\x93"
        out[offset] = rng.choice((*opcodes, rng.randrange(256)))
    return bytes(out)


def jpeg(content: bytes, rng: Random) -> bytes:
    """Garble a JPEG by adding, deleting, repeating or changing segments, or by its bytes."""
    if rng.random() < 0.4:
        return bytewise(content, rng)
    segments, begin = [], 2
    while begin + 4 <= len(content) and content[begin] == 0xFF and content[begin + 1] != 0xDA:
        end = begin + 2 + int.from_bytes(content[begin + 2 : begin + 4], "big")
        segments.append(content[begin:end])
        begin = end
    _change_parts(segments, rng, lambda part: part[:2] + _with_length(bytewise(part[4:], rng)))
    if rng.random() < 0.4:
        exif = b"Exif\0\0" + _tiff(rng)
        marker = rng.choice((b"\xff\xe1", b"\xff\xed", b"\xff\xe2", b"\xff\xfe", b"\xff\xc2"))
        segments.insert(rng.randrange(len(segments) + 1), marker + _with_length(exif))
    return content[:2] + b"".join(segments) + content[begin:]


def _with_length(payload: bytes) -> bytes:
    return struct.pack(">H", (len(payload) + 2) & 0xFFFF) + payload


def _tiff(rng: Random) -> bytes:
    """Return TIFF tags, as in EXIF: an orientation and up to three random tags."""
    order = rng.choice("<>")
    tags = [struct.pack(f"{order}HHIHH", 0x112, 3, 1, rng.randrange(12), 0)]
    for _ in range(rng.randrange(4)):
        tags.append(
            struct.pack(
                f"{order}HHII", rng.choice((0x112, 0x11A, 0x128, 0x8769, rng.getrandbits(16))),
                rng.choice((0, 1, 2, 3, 4, 5, 7, 12, 13, 99)), rng.choice(_NUMBERS),
                rng.choice((*_NUMBERS, 8)),
            )
        )  # fmt: skip
    rng.shuffle(tags)
    num_tags = len(tags) if rng.random() < 0.9 else rng.getrandbits(16)
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(
        f"{order}I", rng.choice((8, 8, 0))
    )
    return header + struct.pack(f"{order}H", num_tags) + b"".join(tags) + bytes(4)


def _change_parts(parts: list[bytes], rng: Random, change: Callable[[bytes], bytes]) -> None:
    """Delete, repeat, move or change one or two of a file's parts, in place."""
    for _ in range(rng.choice((1, 1, 2)) if parts else 0):
        index = rng.randrange(len(parts))
        kind = rng.randrange(6)
        if kind == 0 and len(parts) > 1:
            del parts[index]
        elif kind == 1:
            parts[index:index] = [parts[index]] * rng.choice((1, 50))
        elif kind == 2:
            parts.insert(rng.randrange(len(parts)), parts.pop(index))
        else:
            parts[index] = change(parts[index])


def png(content: bytes, rng: Random) -> bytes:
    """Garble a PNG by adding, deleting, repeating or changing chunks, or by its bytes.

    Unless its bytes are garbled, its checksums are correct.
    """
    if rng.random() < 0.3:
        return bytewise(content, rng)
    chunks, begin = [], len(PNG)
    while begin < len(content):
        length = int.from_bytes(content[begin : begin + 4], "big")
        chunks.append(content[begin + 4 : begin + 8 + length])
        begin += 12 + length
    _change_parts(chunks, rng, lambda part: part[:4] + bytewise(part[4:], rng))
    if rng.random() < 0.5:
        text = rng.randbytes(rng.choice((0, 20, 3000)))
        profile = b"Raw profile type exif\0\0" + zlib.compress(
            b"\nexif\n 99\n" + _tiff(rng).hex().encode()
        )
        new = rng.choice((
            b"eXIf" + _tiff(rng), b"zTXt" + profile, b"zTXtkey\0\0" + _ZIP_BOMB,
            b"iCCPname\0\0" + zlib.compress(text), b"tRNS" + text[:6], b"acTL" + text[:8],
            b"iTXtXML:com.adobe.xmp\0\0\0\0\0" + text, b"gAMA" + text[:4], b"PLTE" + text[:9],
            b"IHDR" + struct.pack(">IIBBBBB", *(rng.choice(_NUMBERS) for _ in range(2)),
                                  rng.choice((1, 2, 4, 8, 16, 3)), rng.choice((0, 2, 3, 4, 6, 1)),
                                  0, 0, rng.choice((0, 1, 2))),
        ))  # fmt: skip
        if new[:4] == b"IHDR" and chunks:
            chunks[0] = new
        else:
            chunks.insert(rng.randrange(len(chunks) + 1), new)
    return PNG + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in chunks
        if len(chunk) >= 4
    )


def tfrecord(content: bytes, rng: Random) -> bytes:
    """Garble a TFRecord file by its records, their lengths, number and order, or by its bytes."""
    if rng.random() < 0.3:
        return bytewise(content, rng)
    records, begin = [], 0
    while begin < len(content):
        end = begin + 16 + int.from_bytes(content[begin : begin + 8], "little")
        records.append(content[begin + 12 : end - 4])
        begin = end
    index = rng.randrange(len(records))
    records[index] = bytewise(records[index], rng)
    if rng.random() < 0.2:
        _change_parts(records, rng, lambda part: bytewise(part, rng))
    lengths = [len(record) for record in records]
    if rng.random() < 0.2:
        lengths[rng.randrange(len(lengths))] = rng.choice((*_NUMBERS, 2**63, 2**64 - 20))
    return b"".join(
        struct.pack("<QI", length, 0) + record + bytes(4)
        for length, record in zip(lengths, records, strict=True)
    )
