import pickle
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

import convit_jax
from convit_jax import models
from convit_jax.errors import InputError
from convit_jax.weights import model_keys, nearest_model, read_tensors, recognise, to_torch
from convit_jax.weights.torch_names import parameter_shapes
from tests.helpers import torch_only


def released_layout(name, **overrides):
    """Return an architecture and its tensors in the released layout, without computing values."""
    architecture = models.architecture(name, **overrides)
    shapes = parameter_shapes(architecture).items()
    params = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes}
    return architecture, to_torch(params, architecture)


@pytest.mark.parametrize("name", models.list_models())
def test_every_named_model_is_recognised(name):
    architecture, tensors = released_layout(name, num_classes=37)
    assert recognise(tensors) == architecture
    assert nearest_model(tensors) == name


@pytest.mark.parametrize(
    "overrides",
    [
        {"depth": 4, "gpsa_layers": 2, "patch_size": 8, "image_size": (64, 64)},
        {"use_gating": False, "in_channels": 1, "mlp_ratio": 2.0},
        {"qkv_bias": True, "gpsa_layers": 12},
    ],
)
def test_other_convits_are_recognised_too(overrides):
    architecture, tensors = released_layout("convit_tiny", **overrides)
    assert recognise(tensors) == architecture


def test_fields_that_cannot_be_inferred_must_be_passed():
    architecture, tensors = released_layout("convit_tiny", image_size=(32, 48))
    with pytest.raises(InputError, match=r"image_size cannot be inferred from the tensors: pass"):
        recognise(tensors)
    assert recognise(tensors, image_size=(32, 48)) == architecture
    architecture, tensors = released_layout("deit_tiny", head_dim=48, num_heads=5)
    with pytest.raises(InputError, match="num_heads cannot be inferred"):
        recognise(tensors)
    assert recognise(tensors, num_heads=5) == architecture


def test_a_model_is_loaded_from_the_file_alone(reference_data):
    path = reference_data / "four_heads.safetensors"
    model = convit_jax.load_model(path)
    with np.load(reference_data / "four_heads.npz") as reference:
        logits = nnx.jit(lambda model, x: model(x))(model, reference["images"])
        difference = np.abs(logits - reference["logits"]).max()
        assert difference < 1e-5 * np.abs(reference["logits"]).max()
    assert convit_jax.load_model(path, dtype="bfloat16").architecture.dtype == "bfloat16"


def test_an_error_names_the_likely_model(tmp_path):
    _, tensors = released_layout("convit_tiny")
    tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    del tensors["norm.bias"]
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=r"x.safetensors: .*missing: norm.bias; these look like"
                       r" the weights of convit_tiny"):  # fmt: skip
        convit_jax.load_model(tmp_path / "x.safetensors")


def test_weights_of_another_model_are_refused(tmp_path):
    safetensors.numpy.save_file({"conv1.weight": np.zeros(3)}, tmp_path / "resnet.safetensors")
    with pytest.raises(InputError, match=r"no ConViT or DeiT weights.*such as 'conv1.weight'"):
        convit_jax.load_model(tmp_path / "resnet.safetensors")


def test_a_file_of_another_kind_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"expected a file that ends in \.safetensors, \.pth"):
        convit_jax.load_model(tmp_path / "weights.npz")


def test_without_pytorch_the_message_says_what_to_do(tmp_path, monkeypatch):
    from convit_jax.weights import files

    (tmp_path / "x.pth").write_bytes(b"PK")
    monkeypatch.setattr(files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install torch, or use the \.safetensors"):
        convit_jax.load_model(tmp_path / "x.pth")


@torch_only
@pytest.mark.parametrize("suffix", [".pth", ".bin", ".pt"])
@pytest.mark.parametrize("wrap", ["flat", "training", "parallel"])
def test_pytorch_files_give_the_same_tensors(suffix, wrap, reference_data, tmp_path):
    import torch

    tensors = read_tensors(reference_data / "four_heads.safetensors")
    content = {name: torch.from_numpy(array.copy()) for name, array in tensors.items()}
    if wrap == "parallel":
        content = {f"module.{name}": tensor for name, tensor in content.items()}
    if wrap != "flat":
        content = {"model": content, "epoch": 3, "optimizer": {"state": {}}}
    torch.save(content, tmp_path / f"x{suffix}")
    model = convit_jax.load_model(tmp_path / f"x{suffix}")
    assert jnp.array_equal(model.head.kernel[...], tensors["head.weight"].T)


class Hostile:
    def __reduce__(self):
        return (exec, ("raise SystemExit('the pickle ran')",))


@torch_only
@pytest.mark.parametrize("archive", [True, False])
def test_a_pickle_that_runs_code_does_not_run(archive, tmp_path):
    path = tmp_path / "x.pth"
    if archive:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("x/data.pkl", pickle.dumps(Hostile(), protocol=2))
            file.writestr("x/version", "3\n")
            file.writestr("x/byteorder", "little")
    else:
        path.write_bytes(pickle.dumps(Hostile(), protocol=2))
    with pytest.raises(InputError, match=r"x.pth was not read|not a whole PyTorch file"):
        convit_jax.load_model(path)


@torch_only
@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04 short"])
def test_a_file_that_is_not_pytorchs_is_refused(content, tmp_path):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(InputError, match=r"x.pth"):
        convit_jax.load_model(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("convit_small_plus", {}),
        ("deit_base", {"num_classes": 3}),
        ("convit_tiny", {"depth": 4, "gpsa_layers": 3, "num_heads": 9, "head_dim": 8}),
        ("convit_tiny", {"patch_size": 2, "image_size": 8}),
        ("deit_tiny", {"depth": 4, "num_heads": 9, "head_dim": 8, "in_channels": 1}),
        ("convit_base", {"use_gating": False, "qkv_bias": True, "image_size": 96}),
    ],
)
def test_model_keys_rebuild_the_same_architecture(name, overrides):
    architecture = models.architecture(name, **overrides)
    keys = model_keys(architecture)
    from_data = {"image_size": architecture.image_size, "num_classes": architecture.num_classes}
    assert models.architecture(**keys, **from_data) == architecture
    assert overrides or keys == {"name": name}


@pytest.mark.parametrize(
    ("card", "message"),
    [('{"architecture": {', "Expecting"), ('{"architekture": null}', "its card cannot be read")],
)
def test_a_garbled_card_is_refused_with_the_files_name(card, message, tmp_path):
    path = tmp_path / "garbled.safetensors"
    tensors = {"cls_token": np.zeros((1, 1, 4), np.float32)}
    safetensors.numpy.save_file(tensors, path, metadata={"convit_jax": card})
    with pytest.raises(InputError, match=rf"garbled.safetensors: .*{message}"):
        convit_jax.load_model(path)
