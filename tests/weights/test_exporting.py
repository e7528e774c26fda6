"""The exported program, which runs without this package."""

import re

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from sklearn.datasets import load_sample_image

from convit_jax.data.images.preprocessing import preprocess
from convit_jax.weights.exporting import PLATFORMS, export_classifier


@pytest.fixture(scope="module")
def artefact(reference_data):
    """An exported classifier of 96-pixel images, and its model."""
    from convit_jax.weights import open_weights

    weights = open_weights(reference_data / "four_heads.safetensors")
    model = weights.model()
    return export_classifier(model, weights.preprocessing(model.architecture)), model


@pytest.mark.parametrize("shape", [(2, 150, 200), (1, 64, 70)])
def test_it_gives_the_models_probabilities_for_images_of_any_size(artefact, shape):
    batch, height, width = shape
    photograph = load_sample_image("china.jpg")
    images = np.stack([photograph[9 * i : height + 9 * i, :width] for i in range(batch)])
    program, model = artefact
    probabilities = jax.export.deserialize(program).call(images)
    run = nnx.jit(lambda model, images: jax.nn.softmax(model(images)))
    expected = run(model, preprocess(list(images), image_size=96))
    # The program's preprocessing is within one grey level of Pillow's.
    assert np.abs(probabilities - expected).max() < 0.003
    assert np.ptp(np.asarray(expected), axis=1).min() > 0.03
    assert probabilities.dtype == np.float32


def test_it_is_lowered_for_every_platform(artefact):
    exported = jax.export.deserialize(artefact[0])
    assert exported.platforms == PLATFORMS == ("cpu", "tpu", "cuda")
    assert str(exported.in_avals[0].shape) == "(batch, height, width, 3)"


def test_the_documented_example_runs_without_this_package(
    artefact, repository, run_python, tmp_path
):
    """Run the example of the documentation in a directory without this package."""
    text = (repository / "docs" / "weights.md").read_text()
    (example,) = re.findall(r"```python\n(# Runs without convit_jax.*?)```", text, re.DOTALL)
    assert len(example.strip().splitlines()) <= 10
    (tmp_path / "convit_tiny.stablehlo").write_bytes(artefact[0])
    Image.fromarray(load_sample_image("china.jpg")).save(tmp_path / "photograph.jpg")
    program = f"{example}\nimport sys\nassert 'convit_jax' not in sys.modules"
    result = run_python("-I", "-c", program, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 5
