"""Whether two runs came to the same: states bit for bit, and every number that they told."""

import collections
import json
import pathlib
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorstore as ts

# What no two runs have alike. Lines and events that have nothing else are left out: a run that is
# killed between a checkpoint and the line that says how long it took never writes that line.
TIMINGS = (
    "train/images_per_second",
    "train/data_wait",
    "train/seconds_left",
    "checkpoint/stall_seconds",
)
_SHOWN = 3  # differences of a kind


def differences(expected: pathlib.Path, found: pathlib.Path, last_step: int) -> list[str]:
    """What of two workdirs is not the same, in words; empty where all is.

    Args:
        expected: the run that was left alone.
        found: the one that was not.
        last_step: of both.
    """
    said = []
    for name, read in (
        ("state", lambda workdir: arrays(workdir / "checkpoints" / str(last_step))),
        ("metrics.jsonl", metrics),
        ("events", events),
    ):
        try:
            one, other = read(expected), read(found)
        except Exception as error:  # whatever is wrong with it: it is what is looked for
            said.append(f"{name}: cannot be read: {type(error).__name__}: {error}")
            continue
        said += [f"{name}: {words}" for words in _shortened(list(_compared(one, other)))]
    left = sorted(path.name for path in (found / "checkpoints").iterdir())
    said += [f"checkpoints: {name} is left" for name in left if not name.isdigit()]
    return said


def arrays(checkpoint: pathlib.Path) -> dict[str, bytes]:
    """{name: type, shape and content} of each array of a checkpoint's state.

    They are read by TensorStore, without the program that is tested.
    """
    store = {"driver": "ocdbt", "base": f"file://{checkpoint}/state/"}
    keys = [key.decode() for key in ts.KvStore.open(store).result().list().result()]
    out = {}
    for key in sorted(keys):
        if key.endswith("/.zarray"):
            name = key.removesuffix("/.zarray")
            spec = {"driver": "zarr", "kvstore": store | {"path": f"{name}/"}}
            array = np.asarray(ts.open(spec, read=True).result().read().result())
            out[name] = f"{array.dtype}{array.shape} ".encode() + array.tobytes()
    return out


def metrics(workdir: pathlib.Path) -> dict[tuple[Any, ...], Any]:
    """{(step, name, how many of that step and name were before): value}, timings left out."""
    told: dict[tuple[Any, ...], Any] = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        for name, value in record.items():
            if name not in TIMINGS and (name not in ("step", "epoch") or _tells(record)):
                _add(told, record["step"], name, value)
    return told


def events(workdir: pathlib.Path) -> dict[tuple[Any, ...], Any]:
    """As `metrics`, of TensorBoard's event files."""
    from tensorboard.compat.proto import event_pb2

    told: dict[tuple[Any, ...], Any] = {}
    for path in sorted(workdir.glob("events.out.tfevents.*")):
        for record in _records(path.read_bytes()):
            event = event_pb2.Event.FromString(record)
            for value in event.summary.value:
                if value.tag not in TIMINGS:
                    content = value.tensor.tensor_content or value.tensor.SerializeToString()
                    _add(told, event.step, value.tag, content)
    return told


def _tells(record: dict[str, Any]) -> bool:
    """Whether a line has more than timings."""
    return not set(record) <= {"step", "epoch", *TIMINGS}


def _add(told: dict[tuple[Any, ...], Any], step: int, name: str, value: Any) -> None:
    before = 0
    while (step, name, before) in told:
        before += 1
    told[step, name, before] = value


def _records(content: bytes) -> Iterator[bytes]:
    """The records of a TFRecord file: each a length, its checksum, the record, its checksum."""
    place = 0
    while place < len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        if place + 16 + length > len(content):
            raise ValueError(f"an event is cut off at byte {place}")
        yield content[place + 12 : place + 12 + length]
        place += 16 + length


def _compared(expected: dict[Any, Any], found: dict[Any, Any]) -> Iterator[tuple[str, str]]:
    """(kind of difference, what of) for every difference."""
    if not expected:
        yield "nothing to compare with", "the run that was left alone"
    for key in dict.fromkeys((*expected, *found)):
        name = key if isinstance(key, str) else f"{key[1]} of step {key[0]}"
        if key not in found:
            yield "missing", name
        elif key not in expected:
            twice = not isinstance(key, str) and key[2] > 0
            yield ("more than once" if twice else "only here"), name
        elif expected[key] != found[key]:
            yield "another value", name


def _shortened(found: list[tuple[str, str]]) -> list[str]:
    kinds = collections.defaultdict(list)
    for kind, name in found:
        kinds[kind].append(name)
    return [
        f"{kind}: {', '.join(names[:_SHOWN])}"
        + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
        for kind, names in kinds.items()
    ]
