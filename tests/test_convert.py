"""python -m convit_jax.convert"""

import importlib.util
import json
import os
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

import convit_jax
from convit_jax import convert
from convit_jax.console import command_line
from convit_jax.weights import open_weights

torch_only = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="PyTorch is not installed: .pth files are an optional extra",
)


@pytest.fixture
def weights(reference_data):
    return str(reference_data / "nine_heads.safetensors")


@pytest.mark.parametrize("between", ["checkpoint", pytest.param("x.pth", marks=torch_only)])
def test_there_and_back_is_bit_identical(between, weights, tmp_path, capsys):
    there, back = str(tmp_path / between), str(tmp_path / "back.safetensors")
    assert convert.main([weights, there]) == 0
    assert convert.main([there, back]) == 0
    original, found = safetensors.numpy.load_file(weights), safetensors.numpy.load_file(back)
    size = sum(array.size for array in original.values())
    assert f"back.safetensors: a model, {size:,} parameters, 7 classes" in capsys.readouterr().out
    assert set(original) == set(found)
    assert all(np.array_equal(original[name], found[name]) for name in original)


def test_a_trained_model_goes_out_with_its_classes(workdir, tmp_path, capsys):
    assert convert.main([str(workdir), str(tmp_path / "x.safetensors"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == 10
    assert open_weights(tmp_path / "x.safetensors").class_names() == tuple("0123456789")
    images = np.zeros((1, 8, 8, 1), np.float32)
    ours, theirs = (convit_jax.load_model(w) for w in (workdir, tmp_path / "x.safetensors"))
    assert np.array_equal(ours(images), theirs(images))


@torch_only
def test_what_a_pytorch_file_has_no_place_for_is_told(workdir, tmp_path, capsys):
    assert convert.main([str(workdir), str(tmp_path / "x.pth")]) == 0
    assert "left behind, for it has no place for them: class names" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>Sign in</html>", "is a web page, not weights"),
        (None, "is not a whole .safetensors file"),
        ({"conv1.weight": np.zeros(3, np.float32)}, "no ConViT or DeiT weights"),
    ],
)
def test_what_is_no_weights_is_one_sentence_and_code_2(content, told, weights, tmp_path, capsys):
    path = tmp_path / "bad.safetensors"
    if isinstance(content, dict):
        safetensors.numpy.save_file(content, path)
    else:
        whole = pathlib.Path(weights).read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    given = [str(path), str(tmp_path / "out")]
    assert command_line.run("convert", lambda: convert.main(given)) == 2
    said = capsys.readouterr().err
    assert told in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@torch_only
def test_a_hostile_pickle_does_not_run_from_the_command_line(repository, tmp_path):
    (tmp_path / "x.pth").write_bytes(pickle.dumps({"model": Hostile(str(tmp_path / "ran"))}, 2))
    command = [sys.executable, "-m", "convit_jax.convert"]
    done = subprocess.run(
        [*command, tmp_path / "x.pth", tmp_path / "y.safetensors"],
        cwd=repository, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "x.pth was not read" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.pth"]
