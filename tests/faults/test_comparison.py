"""Comparing runs: every difference is found, and timings are ignored."""

import json
import shutil

import numpy as np
import pytest

from tests.faults.comparison import arrays, differences
from tests.helpers import read_metrics


@pytest.fixture
def other(workdir, tmp_path):
    """A copy of a run of two steps."""
    return shutil.copytree(workdir, tmp_path / "other")


def write(directory, records):
    text = "".join(json.dumps(record) + "\n" for record in records)
    (directory / "metrics.jsonl").write_text(text)


def test_a_run_is_the_same_as_itself(workdir, other):
    assert differences(workdir, other, 2) == []
    names = arrays(workdir / "checkpoints" / "2")
    assert {name.partition(".")[0] for name in names} == {
        "step", "params", "ema_params", "opt_state",
    }  # fmt: skip


def test_timings_are_not_compared(workdir, other):
    records = read_metrics(other)
    for record in records:
        record |= {
            name: 7.0 for name in record if name in ("train/data_wait", "train/seconds_left")
        }
    stalls = [record for record in records if "checkpoint/stall_seconds" in record]
    assert stalls
    write(other, [record for record in records if record not in stalls])
    assert differences(workdir, other, 2) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda records: [*records, records[-2]], "metrics.jsonl: more than once: "),
        (lambda records: [r for r in records if "eval/loss" not in r], "metrics.jsonl: missing: "),
        (lambda records: [r | {"step": 1} for r in records], "metrics.jsonl: unexpected: "),
        (
            lambda records: [r | {"eval/loss": 1.0} if "eval/loss" in r else r for r in records],
            "metrics.jsonl: another value: eval/loss of step 2",
        ),
    ],
)
def test_differing_metrics_are_found(change, message, workdir, other):
    records = [record for record in read_metrics(other) if "checkpoint/stall_seconds" not in record]
    write(other, change([*records, *records[-1:]][: len(records)]))
    findings = differences(workdir, other, 2)
    assert any(finding.startswith(message) for finding in findings), findings


def test_differing_events_are_found(workdir, other):
    (path,) = other.glob("events.out.tfevents.*")
    shutil.copy(path, f"{path}.again")
    assert [finding.rpartition(": ")[0] for finding in differences(workdir, other, 2)] == [
        "events: more than once"
    ]
    (other / f"{path.name}.again").unlink()
    path.write_bytes(path.read_bytes()[:-5])
    (finding,) = differences(workdir, other, 2)
    assert finding.startswith("events: cannot be read: ValueError: an event is cut off")


def test_a_differing_bit_of_the_state_is_found(workdir, other):
    import tensorstore as ts

    store = {"driver": "ocdbt", "base": f"file://{other}/checkpoints/2/state/"}
    spec = {"driver": "zarr", "kvstore": store | {"path": "ema_params.cls_token/"}}
    array = ts.open(spec).result()
    content = np.array(array.read().result())
    content.view(np.uint8).flat[0] ^= 1
    array.write(content).result()
    assert differences(workdir, other, 2) == ["state: another value: ema_params.cls_token"]
    shutil.rmtree(other / "checkpoints" / "2" / "state")
    (finding,) = differences(workdir, other, 2)
    assert finding.startswith("state: ")


def test_remains_of_a_kill_are_found(workdir, other):
    (other / "checkpoints" / "1.orbax-checkpoint-tmp").mkdir()
    (other / "checkpoints" / "1.damaged").mkdir()
    assert differences(workdir, other, 2) == [
        "checkpoints: 1.damaged is left", "checkpoints: 1.orbax-checkpoint-tmp is left",
    ]  # fmt: skip
