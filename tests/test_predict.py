"""python -m convit_jax.predict"""

import json

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

import convit_jax
from convit_jax import predict


@pytest.fixture
def images(tmp_path):
    """Folder with two images, a third in a subfolder, and a file that is not an image."""
    for name in ("china", "flower"):
        Image.fromarray(load_sample_image(f"{name}.jpg")).save(tmp_path / f"{name}.jpg")
    (tmp_path / "deep").mkdir()
    Image.fromarray(load_sample_image("china.jpg")[:, ::-1]).save(tmp_path / "deep" / "mirror.png")
    (tmp_path / "broken.jpg").write_bytes(b"<html>no image</html>")
    return tmp_path


@pytest.fixture
def weights(reference_data):
    return str(reference_data / "four_heads.safetensors")


@pytest.fixture
def run_predict(run_command):
    """A function of weights and arguments: exit code, predictions by image, standard error."""

    def run(weights, *arguments):
        code, output = run_command(predict, "--weights", weights, *arguments, "--json")
        records = [json.loads(line) for line in output.out.splitlines()]
        return code, {record["image"]: record["predictions"] for record in records}, output.err

    return run


def test_probabilities_are_those_of_the_model(images, weights, run_predict):
    paths = [str(images / name) for name in ("china.jpg", "flower.jpg", "deep/mirror.png")]
    code, predictions, _ = run_predict(weights, *paths, "--batch-size", "2")
    assert (code, list(predictions)) == (0, paths)
    logits = np.asarray(convit_jax.load_model(weights)(convit_jax.preprocess(paths, image_size=96)))
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for row, path in zip(expected, paths, strict=True):
        assert [p["label"] for p in predictions[path]] == list(np.argsort(-row)[:5])
        probabilities = [p["probability"] for p in predictions[path]]
        assert np.allclose(probabilities, -np.sort(-row)[:5], atol=1e-5)


def test_unreadable_images_are_reported_and_the_others_classified(images, weights, run_predict):
    code, predictions, errors = run_predict(weights, images, f"{images}/none.jpg")
    assert code == 1
    names = {path.rpartition("/")[2] for path in predictions}
    assert names == {"china.jpg", "flower.jpg", "mirror.png"}
    assumption, *reported = errors.splitlines()
    assert "a centre crop of 0.875 are assumed" in assumption
    assert reported == [
        f"predict: {images}/broken.jpg: not an image of a known format",
        f"predict: no image at {images}/none.jpg: the file does not exist",
    ]


def test_class_names_of_the_training_data(workdir, tmp_path, run_predict):
    Image.fromarray(np.full((8, 8), 9, np.uint8)).save(tmp_path / "digit.png")
    _, all_predictions, _ = run_predict(workdir, tmp_path / "digit.png", "--top", "12")
    (predictions,) = all_predictions.values()
    assert {p["name"] for p in predictions} == set("0123456789")
    assert sum(p["probability"] for p in predictions) == pytest.approx(1, abs=1e-5)


def test_text_output_has_class_names_and_percent(images, weights, capsys):
    assert predict.main(["--weights", weights, f"{images}/china.jpg", "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{images}/china.jpg"
    assert len(lines) == 3
    assert lines[1].split()[1] == "%"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x.jpg", "--top", "0"], "--top=0: expected at least 1"),
        (["nowhere/*.jpg"], "no file matches nowhere/*.jpg"),
        (["x.jpg", "--tpo", "3"], "no flag --tpo: did you mean '--top'?"),
        ([], "the following arguments are required: IMAGE"),
        (["x.jpg", "--override", "image_size=100"], "not a whole number of 16-pixel patches"),
    ],
)
def test_input_errors_are_one_sentence_and_code_2(arguments, message, weights, run_command):
    code, output = run_command(predict, "--weights", weights, *arguments)
    assert code == 2
    assert message in output.err
    assert len(output.err.splitlines()) == 1
