import json

import numpy as np
import pytest
import safetensors

from convit_jax import models
from convit_jax.errors import InputError
from convit_jax.weights import Card, Weights, new_path, open_weights, to_torch, write_weights
from tests.helpers import random_parameters, torch_only

# The names in the released weights: depth 12, GPSA in blocks 0 to 9.
_GPSA = ("gating_param", "qk.weight", "v.weight", "proj.weight", "proj.bias", "pos_proj.weight",
         "pos_proj.bias")  # fmt: skip
_PLAIN = ("qkv.weight", "proj.weight", "proj.bias")
_COMMON = ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "mlp.fc1.weight",
         "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias")  # fmt: skip


def released_names():
    names = {"cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias",
             "norm.weight", "norm.bias", "head.weight", "head.bias"}  # fmt: skip
    for block in range(12):
        attention = _GPSA if block < 10 else _PLAIN
        names |= {f"blocks.{block}.attn.{name}" for name in attention}
        names |= {f"blocks.{block}.{name}" for name in _COMMON}
    return names


@pytest.fixture
def convit_tiny():
    """Full-size weights with random values."""
    architecture = models.architecture("convit_tiny")
    return Weights("convit_tiny", to_torch(random_parameters(architecture), architecture), Card())


@pytest.mark.parametrize("suffix", [".safetensors", pytest.param(".pth", marks=torch_only), ""])
def test_full_size_weights_come_back_bit_for_bit_with_the_released_names(
    suffix, convit_tiny, tmp_path
):
    assert set(convit_tiny.tensors) == released_names()
    assert len(convit_tiny.tensors) == 180
    path = new_path(str(tmp_path / f"there{suffix}"))
    write_weights(convit_tiny, path, convit_tiny.architecture())
    converted = open_weights(path)
    copy = new_path(str(tmp_path / "back.safetensors"))
    write_weights(converted, copy, converted.architecture())
    with safetensors.safe_open(copy, "numpy") as file:
        assert set(file.keys()) == released_names()
        for name in file.keys():  # noqa: SIM118  (it is no mapping)
            tensor = file.get_tensor(name)
            assert tensor.dtype == np.float32
            assert np.array_equal(tensor, convit_tiny.tensors[name]), name
        assert file.metadata()["format"] == "pt"


@torch_only
def test_a_pytorch_file_is_a_flat_dictionary_of_tensors(four_heads, tmp_path):
    import torch

    write_weights(four_heads, new_path(str(tmp_path / "x.pth")), four_heads.architecture())
    content = torch.load(tmp_path / "x.pth", weights_only=True)
    assert set(content) == set(four_heads.tensors)
    assert all(type(tensor) is torch.Tensor for tensor in content.values())


def test_safetensors_files_contain_the_card(four_heads, tmp_path):
    card = Card(None, tuple("abcdefghij"), 0.9, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    weights = Weights("x", four_heads.tensors, card)
    path = new_path(str(tmp_path / "x.safetensors"))
    write_weights(weights, path, weights.architecture())
    copy = open_weights(path).card
    assert copy == Card(weights.architecture(), *list(vars(card).values())[1:])
    assert Card.from_json(json.loads(json.dumps(card.as_json()))) == card


def test_another_image_size_is_written_resampled(four_heads, tmp_path):
    path = new_path(str(tmp_path / "x.safetensors"))
    write_weights(four_heads, path, four_heads.architecture(image_size=(128, 128)))
    assert open_weights(path).tensors["pos_embed"].shape == (1, 64, 32)
    assert open_weights(path).architecture().image_size == (128, 128)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.tflite", r"cannot write '.tflite' files, expected one of .bin, .onnx, .pt"),
        ("x.safetensor", r"did you mean '.safetensors'"),
        ("taken.pth", r"taken.pth already exists"),
    ],
)
def test_an_unsupported_or_existing_destination_is_refused(name, message, tmp_path):
    (tmp_path / "taken.pth").write_bytes(b"precious")
    with pytest.raises(InputError, match=message):
        new_path(str(tmp_path / name))
    assert (tmp_path / "taken.pth").read_bytes() == b"precious"


def test_a_directory_that_cannot_be_created_is_reported(four_heads, tmp_path):
    (tmp_path / "file").write_text("")
    path = new_path(str(tmp_path / "file" / "x.safetensors"))
    with pytest.raises(InputError, match=r"x.safetensors cannot be written: "):
        write_weights(four_heads, path, four_heads.architecture())


def test_weights_that_fit_no_model_are_not_written(four_heads, tmp_path):
    tensors = dict(four_heads.tensors)
    del tensors["norm.bias"]
    weights = Weights("x", tensors, Card())
    with pytest.raises(InputError, match=r"missing: norm.bias"):
        write_weights(weights, new_path(str(tmp_path / "x.pth")), weights.architecture())
    assert not list(tmp_path.iterdir())


def test_without_pytorch_the_message_says_what_to_do(four_heads, tmp_path, monkeypatch):
    from convit_jax.weights import writing

    monkeypatch.setattr(writing.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install torch, or write .safetensors"):
        write_weights(four_heads, new_path(str(tmp_path / "x.pth")), four_heads.architecture())
