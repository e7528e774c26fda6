"""Comparing the results of two runs: states bit for bit, and every reported number."""

import collections
import json
import pathlib
import struct
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorstore as ts

# Metrics that differ between any two runs. Lines and events with nothing else are ignored: a run
# killed between a checkpoint and the line with its duration never writes that line.
TIMINGS = (
    "train/images_per_second",
    "train/data_wait",
    "train/seconds_left",
    "train/device_hours",
    "train/mfu",
    "checkpoint/stall_seconds",
)
_MAX_NAMES = 3  # of each kind of difference


def differences(expected: pathlib.Path, actual: pathlib.Path, last_step: int) -> list[str]:
    """Describe the differences between two workdirs; empty if there are none.

    Args:
        expected: workdir of the uninterrupted run.
        actual: workdir of the interrupted run.
        last_step: the last step of both.
    """
    descriptions = []
    for name, read in (
        ("state", lambda workdir: arrays(workdir / "checkpoints" / str(last_step))),
        ("metrics.jsonl", metrics),
        ("events", events),
    ):
        try:
            expected_values, actual_values = read(expected), read(actual)
        except Exception as error:  # any error is a finding
            descriptions.append(f"{name}: cannot be read: {type(error).__name__}: {error}")
            continue
        differing = _compare(expected_values, actual_values)
        descriptions += [f"{name}: {text}" for text in _summarise(differing)]
    names = sorted(path.name for path in (actual / "checkpoints").iterdir())
    descriptions += [f"checkpoints: {name} is left" for name in names if not name.isdigit()]
    return descriptions


def arrays(checkpoint: pathlib.Path) -> dict[str, bytes]:
    """Return {name: type, shape and content} of each array of a checkpoint's state.

    TensorStore reads them, independently of the tested program.
    """
    store = {"driver": "ocdbt", "base": f"file://{checkpoint}/state/"}
    keys = [key.decode() for key in ts.KvStore.open(store).result().list().result()]
    contents = {}
    for key in sorted(keys):
        if key.endswith("/.zarray"):
            name = key.removesuffix("/.zarray")
            spec = {"driver": "zarr", "kvstore": store | {"path": f"{name}/"}}
            array = np.asarray(ts.open(spec, read=True).result().read().result())
            contents[name] = f"{array.dtype}{array.shape} ".encode() + array.tobytes()
    return contents


def metrics(workdir: pathlib.Path) -> dict[tuple[Any, ...], Any]:
    """Return {(step, name, number of earlier values of both): value}, without timings."""
    values: dict[tuple[Any, ...], Any] = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        has_metrics = not set(record) <= {"step", "epoch", *TIMINGS}
        for name, value in record.items():
            if name not in TIMINGS and (name not in ("step", "epoch") or has_metrics):
                _add(values, record["step"], name, value)
    return values


def events(workdir: pathlib.Path) -> dict[tuple[Any, ...], Any]:
    """Like `metrics`, for TensorBoard's event files."""
    from tensorboard.compat.proto import event_pb2

    values: dict[tuple[Any, ...], Any] = {}
    for path in sorted(workdir.glob("events.out.tfevents.*")):
        for record in _records(path.read_bytes()):
            event = event_pb2.Event.FromString(record)
            for value in event.summary.value:
                if value.tag not in TIMINGS:
                    content = value.tensor.tensor_content or value.tensor.SerializeToString()
                    _add(values, event.step, value.tag, content)
    return values


def _add(values: dict[tuple[Any, ...], Any], step: int, name: str, value: Any) -> None:
    num_earlier = 0
    while (step, name, num_earlier) in values:
        num_earlier += 1
    values[step, name, num_earlier] = value


def _records(content: bytes) -> Iterator[bytes]:
    """Yield the records of a TFRecord file (length, its checksum, record, its checksum)."""
    offset = 0
    while offset < len(content):
        (length,) = struct.unpack_from("<Q", content, offset)
        if offset + 16 + length > len(content):
            raise ValueError(f"an event is cut off at byte {offset}")
        yield content[offset + 12 : offset + 12 + length]
        offset += 16 + length


def _compare(expected: dict[Any, Any], actual: dict[Any, Any]) -> Iterator[tuple[str, str]]:
    """Yield (kind of difference, name) for every difference."""
    if not expected:
        yield "nothing to compare with", "the uninterrupted run"
    for key in dict.fromkeys((*expected, *actual)):
        name = key if isinstance(key, str) else f"{key[1]} of step {key[0]}"
        if key not in actual:
            yield "missing", name
        elif key not in expected:
            is_repeated = not isinstance(key, str) and key[2] > 0
            yield ("more than once" if is_repeated else "unexpected"), name
        elif expected[key] != actual[key]:
            yield "another value", name


def _summarise(differing: Iterable[tuple[str, str]]) -> list[str]:
    """Describe each kind of difference in one line with a few names."""
    names_by_kind = collections.defaultdict(list)
    for kind, name in differing:
        names_by_kind[kind].append(name)
    return [
        f"{kind}: {', '.join(names[:_MAX_NAMES])}"
        + (f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else "")
        for kind, names in names_by_kind.items()
    ]
