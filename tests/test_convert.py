"""python -m convit_jax.convert"""

import json
import os
import pathlib
import pickle

import numpy as np
import pytest
import safetensors.numpy

import convit_jax
from convit_jax import convert
from convit_jax.weights import open_weights
from tests.helpers import torch_only


@pytest.fixture
def weights(reference_data):
    return str(reference_data / "nine_heads.safetensors")


@pytest.mark.parametrize("intermediate", ["checkpoint", pytest.param("x.pth", marks=torch_only)])
def test_conversion_and_back_is_bit_identical(intermediate, weights, tmp_path, capsys):
    converted, back = str(tmp_path / intermediate), str(tmp_path / "back.safetensors")
    assert convert.main([weights, converted]) == 0
    assert convert.main([converted, back]) == 0
    original, result = safetensors.numpy.load_file(weights), safetensors.numpy.load_file(back)
    size = sum(array.size for array in original.values())
    assert f"back.safetensors: a model, {size:,} parameters, 7 classes" in capsys.readouterr().out
    assert set(original) == set(result)
    assert all(np.array_equal(original[name], result[name]) for name in original)


def test_class_names_of_a_trained_model_are_kept(workdir, tmp_path, capsys):
    assert convert.main([str(workdir), str(tmp_path / "x.safetensors"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == 10
    assert open_weights(tmp_path / "x.safetensors").class_names() == tuple("0123456789")
    images = np.zeros((1, 8, 8, 1), np.float32)
    original, converted = (convit_jax.load_model(w) for w in (workdir, tmp_path / "x.safetensors"))
    assert np.array_equal(original(images), converted(images))


@torch_only
def test_information_lost_in_a_pytorch_file_is_reported(workdir, tmp_path, capsys):
    assert convert.main([str(workdir), str(tmp_path / "x.pth")]) == 0
    assert "not saved, as the format has no place for it: class names" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>Sign in</html>", "is a web page, not weights"),
        (None, "is not a whole .safetensors file"),
        ({"conv1.weight": np.zeros(3, np.float32)}, "no ConViT or DeiT weights"),
    ],
)
def test_invalid_weights_are_one_sentence_and_code_2(
    content, message, weights, tmp_path, run_command
):
    path = tmp_path / "bad.safetensors"
    if isinstance(content, dict):
        safetensors.numpy.save_file(content, path)
    else:
        complete = pathlib.Path(weights).read_bytes()
        path.write_bytes(complete[: len(complete) // 2] if content is None else content)
    code, output = run_command(convert, path, tmp_path / "out")
    assert code == 2
    assert message in output.err
    assert len(output.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


class MakesDirectory:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@torch_only
def test_malicious_pickle_is_not_executed(run_python, tmp_path):
    (tmp_path / "x.pth").write_bytes(
        pickle.dumps({"model": MakesDirectory(str(tmp_path / "ran"))}, 2)
    )
    files = (tmp_path / "x.pth", tmp_path / "y.safetensors")
    result = run_python("-m", "convit_jax.convert", *files)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert "x.pth was not read" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.pth"]
