"""Files garbled at random, by their bytes and by their structure: what `fuzz.py` reads.

Everything here is a function of bytes and a `random.Random`.
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
_MUCH = zlib.compress(bytes(1 << 24))
_NUMBERS = (0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1)
_VALUES = (
    None, True, False, 0, 1, -1, 3, 2**31, 2**63, 10**30, 0.0, 0.5, -0.5, 1e-300, 1e300,
    float("nan"), float("inf"), "", "x", "F64", "BF16", "float32", "\ud800", "é" * 300, [], {},
    [0], [1, 2, 3], [-1], [2**40, 2**40], {"": 0}, {"a": {"b": None}}, [[[]]],
)  # fmt: skip


def bytewise(content: bytes, rng: Random) -> bytes:
    """One to four changes that need not know what the bytes are."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        content = rng.choice(_BYTEWISE)(content, rng)
    return content


def _flip_bits(content: bytes, rng: Random) -> bytes:
    out = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8, 32)) if out else 0):
        out[_place(out, rng)] ^= 1 << rng.randrange(8)
    return bytes(out)


def _place(content: bytes | bytearray, rng: Random) -> int:
    """Somewhere in it, often near its beginning, where headers are."""
    end = len(content) if rng.random() < 0.5 else min(len(content), 200)
    return rng.randrange(end)


def _overwrite(content: bytes, rng: Random) -> bytes:
    """A number, of one to eight bytes and in either order, in the place of another."""
    if not content:
        return content
    size = rng.choice((1, 2, 4, 8))
    number = rng.choice((*_NUMBERS, len(content), rng.getrandbits(8 * size)))
    new = (number & (1 << 8 * size) - 1).to_bytes(size, rng.choice(("little", "big")))
    at = _place(content, rng)
    return content[:at] + new + content[at + size :]


def _cut_off(content: bytes, rng: Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _cut_out(content: bytes, rng: Random) -> bytes:
    first, last = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    return content[:first] + content[last:]


def _repeat(content: bytes, rng: Random) -> bytes:
    first, last = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    return content[:last] + content[first:last] * rng.choice((1, 2, 8)) + content[last:]


def _insert(content: bytes, rng: Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.randbytes(rng.choice((1, 2, 16, 300))) + content[at:]


def _move(content: bytes, rng: Random) -> bytes:
    """A part of it in the place of another part."""
    size = rng.choice((4, 16, 64, 512))
    source, at = (rng.randrange(len(content) + 1) for _ in range(2))
    return content[:at] + content[source : source + size] + content[at + size :]


_BYTEWISE: tuple[Garbler, ...] = (
    _flip_bits, _flip_bits, _overwrite, _overwrite, _cut_off, _cut_out, _repeat, _insert, _move,
)  # fmt: skip


def other_json(value: Any, rng: Random) -> Any:
    """A tree of JSON with some of its values exchanged, left out, renamed or nested."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 3))):
        holders = [node for node in _nodes(value) if node]
        if not holders:
            return copy.deepcopy(rng.choice(_VALUES))
        holder = rng.choice(holders)
        place = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        what = rng.randrange(6)
        if what == 0:
            del holder[place]
        elif what == 1 and isinstance(holder, dict):
            holder[rng.choice(("", "x", f"{place}x", "__class__"))] = holder.pop(place)
        elif what == 2:
            others = [item for node in holders for item in _items(node)]
            holder[place] = copy.deepcopy(rng.choice(others))
        elif what == 3:
            holder[place] = rng.choice(([holder[place]], {"x": holder[place]}, [holder[place]] * 3))
        elif what == 4 and isinstance(holder[place], int | float):
            holder[place] = holder[place] * rng.choice((-1, 0, 2, 1000)) + rng.choice((-1, 0, 1))
        else:
            holder[place] = copy.deepcopy(rng.choice(_VALUES))
    return value


def _nodes(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        yield value
        for item in _items(value):
            yield from _nodes(item)


def _items(node: Any) -> list[Any]:
    return list(node.values() if isinstance(node, dict) else node)


def json_text(content: bytes, rng: Random) -> bytes:
    """A JSON file with other values, another nesting, or garbled as bytes."""
    what = rng.randrange(10)
    if what < 2:
        return bytewise(content, rng)
    if what == 2:
        depth = rng.choice((50, 2000, 200_000))
        return b'{"a":' * depth + b"1" + b"}" * depth if rng.random() < 0.5 else b"[" * depth
    if what == 3:
        return content.replace(b"1", b"1" * rng.choice((20, 5000)), 1)
    return json.dumps(other_json(json.loads(content), rng)).encode()


def safetensors(content: bytes, rng: Random) -> bytes:
    """A .safetensors file with another header, or garbled as bytes."""
    if rng.random() < 0.4:
        return bytewise(content, rng)
    length = int.from_bytes(content[:8], "little")
    header, tensors = content[8 : 8 + length], content[8 + length :]
    if rng.random() < 0.2:
        tensors = bytewise(tensors, rng)
    new = json_text(header, rng)
    claimed = len(new) if rng.random() < 0.9 else rng.choice((*_NUMBERS, 2**63, len(content)))
    return claimed.to_bytes(8, "little") + new + tensors


def card(content: bytes, rng: Random, key: str = "convit_jax") -> bytes:
    """A .safetensors file of ours whose card, alone, says other things."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"][key] = json_text(header["__metadata__"][key].encode(), rng).decode(
        errors="replace"
    )
    new = json.dumps(header).encode()
    return len(new).to_bytes(8, "little") + new + content[8 + length :]


class _Runs:
    """Pickled, it is a call; unpickled by the careless, the call is made."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self._call


def torch_file(canary: str) -> Garbler:
    """A garbler of PyTorch's files; some pickles in them would create the file `canary`."""

    def evil(rng: Random) -> bytes:
        command = f"touch {canary}"
        calls = (
            _Runs(os.system, command), _Runs(subprocess.run, ["touch", canary]),
            _Runs(exec, f"open({canary!r}, 'w')"), _Runs(eval, f"open({canary!r}, 'w')"),
            # Eight gigabytes, also by names that files of training scripts have rightly.
            _Runs(bytearray, 1 << 33), _Runs(np.ndarray, (1 << 33,)), _Runs(list, range(1 << 40)),
            _Runs(np._core.multiarray._reconstruct, np.ndarray, (1 << 33,), b"b"),
        )  # fmt: skip
        call = rng.choice(calls)
        return pickle.dumps(
            rng.choice((call, {"model": call}, {"model": {"head.weight": call}}, [call] * 3)),
            protocol=rng.choice((0, 2, 2, 2, 2, 4)),
        )

    def garble(content: bytes, rng: Random) -> bytes:
        what = rng.randrange(10)
        if what == 0:
            return evil(rng)
        if what < 4 or not zipfile.is_zipfile(io.BytesIO(content)):
            # The older format is five pickles in a row, and the tensors' bytes.
            return bytewise(evil(rng) + content if what == 1 else content, rng)
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
            chosen = rng.choice(old.namelist())
            for name in old.namelist():
                part = old.read(name)
                if name.endswith("data.pkl") and what < 8:
                    part = evil(rng) if what == 4 else _pickle(part, rng)
                elif name == chosen and what >= 7:
                    if rng.random() < 0.2:
                        continue
                    name, part = rng.choice((name, name + "x")), bytewise(part, rng)
                packed = zipfile.ZIP_DEFLATED if rng.random() < 0.02 else zipfile.ZIP_STORED
                new.writestr(name, part, packed)
        return out.getvalue()

    return garble


def _pickle(content: bytes, rng: Random) -> bytes:
    """Opcodes and arguments changed in place, so that most of it stays a pickle."""
    if rng.random() < 0.3:
        return bytewise(content, rng)
    out = bytearray(content)
    for _ in range(rng.choice((1, 2, 3))):
        at = rng.randrange(len(out))
        out[at] = rng.choice((*b"cRbi()}]eusKMJNht.0q\x85\x86\x87\x88\x89\x93", rng.randrange(256)))
    return bytes(out)


def jpeg(content: bytes, rng: Random) -> bytes:
    """A JPEG with a segment more, less, twice or changed, or garbled as bytes."""
    if rng.random() < 0.4:
        return bytewise(content, rng)
    segments, at = [], 2
    while at + 4 <= len(content) and content[at] == 0xFF and content[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        segments.append(content[at:end])
        at = end
    _change_parts(segments, rng, lambda part: part[:2] + _sized(bytewise(part[4:], rng)))
    if rng.random() < 0.4:
        exif = b"Exif\0\0" + _tiff(rng)
        marker = rng.choice((b"\xff\xe1", b"\xff\xed", b"\xff\xe2", b"\xff\xfe", b"\xff\xc2"))
        segments.insert(rng.randrange(len(segments) + 1), marker + _sized(exif))
    return content[:2] + b"".join(segments) + content[at:]


def _sized(payload: bytes) -> bytes:
    return struct.pack(">H", (len(payload) + 2) & 0xFFFF) + payload


def _tiff(rng: Random) -> bytes:
    """EXIF's tags with an orientation and nonsense beside it."""
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
    count = len(tags) if rng.random() < 0.9 else rng.getrandbits(16)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(
        f"{order}I", rng.choice((8, 8, 0))
    )
    return head + struct.pack(f"{order}H", count) + b"".join(tags) + bytes(4)


def _change_parts(parts: list[bytes], rng: Random, change: Callable[[bytes], bytes]) -> None:
    """One or two of a file's parts left out, repeated, moved or changed."""
    for _ in range(rng.choice((1, 1, 2)) if parts else 0):
        at = rng.randrange(len(parts))
        what = rng.randrange(6)
        if what == 0 and len(parts) > 1:
            del parts[at]
        elif what == 1:
            parts[at:at] = [parts[at]] * rng.choice((1, 50))
        elif what == 2:
            parts.insert(rng.randrange(len(parts)), parts.pop(at))
        else:
            parts[at] = change(parts[at])


def png(content: bytes, rng: Random) -> bytes:
    """A PNG with a chunk more, less, twice or changed, its checksums right, or garbled as bytes."""
    if rng.random() < 0.3:
        return bytewise(content, rng)
    chunks, at = [], len(PNG)
    while at < len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        chunks.append(content[at + 4 : at + 8 + length])
        at += 12 + length
    _change_parts(chunks, rng, lambda part: part[:4] + bytewise(part[4:], rng))
    if rng.random() < 0.5:
        text = rng.randbytes(rng.choice((0, 20, 3000)))
        profile = b"Raw profile type exif\0\0" + zlib.compress(
            b"\nexif\n 99\n" + _tiff(rng).hex().encode()
        )
        extra = rng.choice((
            b"eXIf" + _tiff(rng), b"zTXt" + profile, b"zTXtkey\0\0" + _MUCH,
            b"iCCPname\0\0" + zlib.compress(text), b"tRNS" + text[:6], b"acTL" + text[:8],
            b"iTXtXML:com.adobe.xmp\0\0\0\0\0" + text, b"gAMA" + text[:4], b"PLTE" + text[:9],
            b"IHDR" + struct.pack(">IIBBBBB", *(rng.choice(_NUMBERS) for _ in range(2)),
                                  rng.choice((1, 2, 4, 8, 16, 3)), rng.choice((0, 2, 3, 4, 6, 1)),
                                  0, 0, rng.choice((0, 1, 2))),
        ))  # fmt: skip
        if extra[:4] == b"IHDR" and chunks:
            chunks[0] = extra
        else:
            chunks.insert(rng.randrange(len(chunks) + 1), extra)
    return PNG + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in chunks
        if len(chunk) >= 4
    )


def tfrecord(content: bytes, rng: Random) -> bytes:
    """A TFRecord file with records garbled, of other lengths, left out or repeated."""
    if rng.random() < 0.3:
        return bytewise(content, rng)
    records, at = [], 0
    while at < len(content):
        end = at + 16 + int.from_bytes(content[at : at + 8], "little")
        records.append(content[at + 12 : end - 4])
        at = end
    number = rng.randrange(len(records))
    records[number] = bytewise(records[number], rng)
    if rng.random() < 0.2:
        _change_parts(records, rng, lambda part: bytewise(part, rng))
    lengths = [len(record) for record in records]
    if rng.random() < 0.2:
        lengths[rng.randrange(len(lengths))] = rng.choice((*_NUMBERS, 2**63, 2**64 - 20))
    return b"".join(
        struct.pack("<QI", length, 0) + record + bytes(4)
        for length, record in zip(lengths, records, strict=True)
    )
