import json

import numpy as np
import pytest

from convit_jax.analysis import read_history
from convit_jax.errors import InputError


def write(directory, *records):
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (directory / "metrics.jsonl").write_text(lines)


def test_evaluations_are_read_in_order(tmp_path):
    def make_record(epoch, shift):
        gates = {f"gate/layer_{g:02d}/head_{h:02d}": g / 10 + h / 100 + shift
                 for g in (1, 2) for h in range(1, 11)}  # fmt: skip
        layers = {f"nonlocality/layer_{layer:02d}": layer + shift for layer in (1, 2, 3)}
        return {"step": 1, "epoch": epoch} | gates | layers

    write(
        tmp_path,
        {"step": 1, "epoch": 0.5, "train/loss": 1.0},
        make_record(1, 0),
        make_record(2, 0.5),
    )
    history = read_history(tmp_path)
    assert np.array_equal(history.epochs, [1, 2])
    assert np.allclose(history.nonlocality, [[1, 2, 3], [1.5, 2.5, 3.5]])
    assert history.gates.shape == (2, 2, 10)
    assert history.gates[1, 1, 9] == pytest.approx(0.2 + 0.1 + 0.5)


def test_run_without_gates(tmp_path):
    write(
        tmp_path, {"step": 1, "epoch": 1, "nonlocality/layer_01": 1, "nonlocality/layer_02": None}
    )
    history = read_history(tmp_path)
    assert history.gates.shape == (1, 0, 0)
    assert np.isnan(history.nonlocality[0, 1])


def test_no_history_without_attention_metrics(tmp_path):
    assert read_history(tmp_path) is None
    write(tmp_path, {"step": 1, "epoch": 1, "train/loss": 1.0})
    assert read_history(tmp_path) is None


def test_damaged_line_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "epoch": 1}\n{"step": 2, "ep\n')
    with pytest.raises(InputError, match=r"metrics.jsonl, line 2 is not JSON"):
        read_history(tmp_path)
