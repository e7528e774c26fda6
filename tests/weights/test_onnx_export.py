"""The .onnx file: in ONNX Runtime it gives the model's logits."""

import json
import re

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from convit_jax import convert, models
from convit_jax.data.images.device_resizing import resize_and_centre_crop
from convit_jax.data.images.preprocessing import Preprocessing
from convit_jax.data.mixing import normalise
from convit_jax.weights import model_from_tensors, open_weights, to_torch
from convit_jax.weights.onnx_export import export_onnx
from tests.helpers import random_parameters

TINY = {"depth": 2, "num_classes": 3, "image_size": 16, "patch_size": 4, "head_dim": 4}
# Between them they have every operator.
MODELS = {
    "class token after GPSA": ("convit_tiny", {"gpsa_layers": 1}),
    "vanilla PSA": ("convit_tiny", {"gpsa_layers": 1, "positional_attention": "vanilla"}),
    "GPSA only": ("convit_tiny", {"gpsa_layers": 2, "use_gating": False, "qkv_bias": True}),
    "two tokens after GPSA": ("convit_tiny", {"gpsa_layers": 1, "distillation_token": True}),
    "DeiT": ("deit_tiny", {"image_size": (16, 24), "in_channels": 1}),
    "distilled": ("deit_tiny_distilled", {}),
    "DeiT III": ("deit3_small", {}),
    "no positions": ("deit_tiny", {"use_pos_embed": False, "class_token_position": False}),
}


def run(content, images):
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(["probabilities", "logits"], {"images": images})


@pytest.mark.parametrize("case", MODELS)
def test_the_logits_agree(case):
    name, fields = MODELS[case]
    a = models.architecture(name, **TINY | fields)
    tensors = to_torch(random_parameters(a, scale=0.3), a)
    mean, std = np.linspace(0.3, 0.5, a.in_channels), np.linspace(0.2, 0.3, a.in_channels)
    preprocessing = Preprocessing(a.image_size, 1.0, tuple(mean), tuple(std))
    content = export_onnx(tensors, a, preprocessing, ("cat", "dog", "üb"))
    (names,) = onnx.load_from_string(content).metadata_props
    assert (names.key, json.loads(names.value)) == ("class_names", ["cat", "dog", "üb"])
    shape = (2, *a.image_size, a.in_channels)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    expected = model_from_tensors(tensors, a)(preprocessing.normalise(images))
    probabilities, logits = run(content, images)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    np.testing.assert_allclose(probabilities, jax.nn.softmax(expected), atol=1e-5)


@pytest.fixture(scope="module")
def artefact(reference_data, tmp_path_factory):
    """The .onnx file of a classifier of 96-pixel images, and the opened weights."""
    path = tmp_path_factory.mktemp("onnx") / "convit_tiny.onnx"
    weights = reference_data / "four_heads.safetensors"
    assert convert.main([str(weights), str(path)]) == 0
    return path, open_weights(weights)


@pytest.mark.parametrize("shape", [(2, 150, 200), (1, 64, 70)])
def test_images_of_any_size_are_prepared_as_in_stablehlo(artefact, shape):
    path, weights = artefact
    batch, height, width = shape
    photograph = load_sample_image("china.jpg")
    images = np.stack([photograph[9 * i : height + 9 * i, :width] for i in range(batch)])
    p = weights.preprocessing(weights.architecture())
    pixels = resize_and_centre_crop(images, p.image_size, p.crop_fraction)
    expected = weights.model()(normalise(pixels, p.mean, p.std))
    # A pixel between two grey levels may be rounded to the other one.
    np.testing.assert_allclose(run(path.read_bytes(), images)[1], expected, atol=1e-3)
    assert np.ptp(np.asarray(expected), axis=1).min() > 0.3


def test_sizes_are_symbolic_and_the_bytes_always_the_same(artefact, tmp_path, reference_data):
    path, _ = artefact
    graph = onnx.load(path).graph
    dimensions = [d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
    assert dimensions == ["batch", "height", "width", 3]
    assert "blocks.0.attn.gating_param" in {tensor.name for tensor in graph.initializer}
    weights = reference_data / "four_heads.safetensors"
    assert convert.main([str(weights), str(tmp_path / "again.onnx")]) == 0
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()


def test_the_documented_example_runs_without_this_package(
    artefact, repository, run_python, tmp_path
):
    text = (repository / "docs" / "weights.md").read_text()
    (example,) = re.findall(r"```python\n(# With ONNX Runtime.*?)```", text, re.DOTALL)
    (tmp_path / "convit_tiny.onnx").write_bytes(artefact[0].read_bytes())
    Image.fromarray(load_sample_image("china.jpg")).save(tmp_path / "photograph.jpg")
    program = (
        f"{example}\nimport sys\nassert not {{'convit_jax', 'jax', 'onnx'}} & set(sys.modules)"
    )
    result = run_python("-I", "-c", program, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 5


def test_without_the_package_the_message_says_what_to_do(
    reference_data, run_command, monkeypatch, tmp_path
):
    monkeypatch.setattr(convert.importlib.util, "find_spec", lambda name: None)
    weights, path = reference_data / "four_heads.safetensors", tmp_path / "x.onnx"
    code, output = run_command(convert, weights, path)
    assert (code, output.err) == (2, f"convert: {path} needs another package: pip install onnx\n")
