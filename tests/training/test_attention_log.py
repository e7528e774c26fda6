"""Gates and non-locality during training."""

import numpy as np
import pytest

import convit_jax
from convit_jax import data
from convit_jax.analysis import locality
from convit_jax.data.images.preprocessing import Preprocessing
from convit_jax.training import loop
from tests.helpers import read_metrics


def test_gates_and_nonlocality_are_logged_at_the_start_and_every_evaluation(
    make_config, tmp_path, capsys
):
    loop.train(make_config(attention_images=50), str(tmp_path / "run"))
    lines = [line for line in read_metrics(tmp_path / "run") if "nonlocality/layer_01" in line]
    assert [line["step"] for line in lines] == [0, 6, 12]
    last = lines[-1]

    model = convit_jax.load_model(tmp_path / "run")
    source = data.open_source("digits:test")
    sample = [source[i * len(source) // 50][0] for i in range(50)]
    preprocessing = Preprocessing((8, 8), 0.875, (0.3,), (0.4,))
    images = np.stack([preprocessing.normalise(preprocessing.crop(image)) for image in sample])
    expected = locality.measure_locality(model, images).nonlocality.mean(axis=1)
    nonlocality = [last[f"nonlocality/layer_{layer:02d}"] for layer in (1, 2)]
    assert nonlocality == pytest.approx(list(expected), abs=1e-5)
    gates = [last[f"gate/layer_01/head_{head:02d}"] for head in (1, 2, 3, 4)]
    assert gates == pytest.approx(np.asarray(locality.gates(model))[0], abs=1e-6)
    assert last["attention/gate"] == pytest.approx(np.mean(gates))

    log = capsys.readouterr().err.splitlines()
    (line,) = [line for line in log if "nonlocality" in line and "step 12/" in line]
    assert line.endswith(f"gate {np.mean(gates):.4g}  nonlocality {np.mean(nonlocality):.4g}")


def test_it_can_be_disabled_and_models_without_gates_log_nonlocality_alone(make_config, tmp_path):
    loop.train(make_config(train_for="2 steps"), str(tmp_path / "none"))
    assert not any("attention/nonlocality" in line for line in read_metrics(tmp_path / "none"))
    plain = make_config(train_for="2 steps", attention_images=3, model__gpsa_layers=0)
    loop.train(plain, str(tmp_path / "plain"))
    names = {name for line in read_metrics(tmp_path / "plain") for name in line}
    assert {"nonlocality/layer_01", "nonlocality/layer_02"} < names
    assert not any(name.startswith(("gate/", "attention/gate")) for name in names)
