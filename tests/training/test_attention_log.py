"""Gates and non-locality during training."""

import json

import numpy as np
import pytest

import convit_jax
from convit_jax import data
from convit_jax.analysis import locality
from convit_jax.data.images.preprocessing import Preprocessing
from convit_jax.training import loop


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_the_beginning_and_every_evaluation_tell_gates_and_nonlocality(
    make_config, tmp_path, capsys
):
    loop.train(make_config(attention_images=50), str(tmp_path / "run"))
    lines = [line for line in lines_of(tmp_path / "run") if "nonlocality/layer_01" in line]
    assert [line["step"] for line in lines] == [0, 6, 12]
    last = lines[-1]

    model = convit_jax.load_model(tmp_path / "run")
    source = data.open_source("digits:test")
    shown = [source[i * len(source) // 50][0] for i in range(50)]
    how = Preprocessing((8, 8), 0.875, (0.3,), (0.4,))
    images = np.stack([how.normalise(how.crop(image)) for image in shown])
    found = locality.measure_locality(model, images).nonlocality.mean(axis=1)
    said = [last[f"nonlocality/layer_{layer:02d}"] for layer in (1, 2)]
    assert said == pytest.approx(list(found), abs=1e-5)
    gates = [last[f"gate/layer_01/head_{head:02d}"] for head in (1, 2, 3, 4)]
    assert gates == pytest.approx(np.asarray(locality.gates(model))[0], abs=1e-6)
    assert last["attention/gate"] == pytest.approx(np.mean(gates))

    told = capsys.readouterr().err.splitlines()
    (line,) = [line for line in told if "nonlocality" in line and "step 12/" in line]
    assert line.endswith(f"gate {np.mean(gates):.4g}  nonlocality {np.mean(said):.4g}")


def test_it_can_be_left_out_and_a_model_without_gates_tells_the_rest(make_config, tmp_path):
    loop.train(make_config(train_for="2 steps"), str(tmp_path / "none"))
    assert not any("attention/nonlocality" in line for line in lines_of(tmp_path / "none"))
    plain = make_config(train_for="2 steps", attention_images=3, model__gpsa_layers=0)
    loop.train(plain, str(tmp_path / "plain"))
    told = {name for line in lines_of(tmp_path / "plain") for name in line}
    assert {"nonlocality/layer_01", "nonlocality/layer_02"} < told
    assert not any(name.startswith(("gate/", "attention/gate")) for name in told)
