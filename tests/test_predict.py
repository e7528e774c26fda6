"""python -m convit_jax.predict"""

import json

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

import convit_jax
from convit_jax import predict
from convit_jax.console import command_line


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


def run_predict(capsys, *arguments):
    """Return exit code, predictions by image, and standard error."""
    capsys.readouterr()
    code = command_line.run("predict", lambda: predict.main([*arguments, "--json"]))
    output = capsys.readouterr()
    records = [json.loads(line) for line in output.out.splitlines()]
    return code, {record["image"]: record["predictions"] for record in records}, output.err


def test_probabilities_are_those_of_the_model(images, weights, capsys):
    paths = [str(images / name) for name in ("china.jpg", "flower.jpg", "deep/mirror.png")]
    code, predictions, _ = run_predict(capsys, "--weights", weights, *paths, "--batch-size", "2")
    assert (code, list(predictions)) == (0, paths)
    logits = np.asarray(convit_jax.load_model(weights)(convit_jax.preprocess(paths, image_size=96)))
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for row, path in zip(expected, paths, strict=True):
        assert [p["label"] for p in predictions[path]] == list(np.argsort(-row)[:5])
        probabilities = [p["probability"] for p in predictions[path]]
        assert np.allclose(probabilities, -np.sort(-row)[:5], atol=1e-5)


def test_unreadable_images_are_reported_and_the_others_classified(images, weights, capsys):
    code, predictions, errors = run_predict(
        capsys, "--weights", weights, str(images), f"{images}/none.jpg"
    )
    assert code == 1
    names = {path.rpartition("/")[2] for path in predictions}
    assert names == {"china.jpg", "flower.jpg", "mirror.png"}
    assumption, *reported = errors.splitlines()
    assert "a centre crop of 0.875 are assumed" in assumption
    assert reported == [
        f"predict: {images}/broken.jpg: not an image of a known format",
        f"predict: no image at {images}/none.jpg: the file does not exist",
    ]


def test_class_names_of_the_training_data(workdir, tmp_path, capsys):
    Image.fromarray(np.full((8, 8), 9, np.uint8)).save(tmp_path / "digit.png")
    _, all_predictions, _ = run_predict(
        capsys, "--weights", str(workdir), str(tmp_path / "digit.png"), "--top", "12"
    )
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
def test_input_errors_are_one_sentence_and_code_2(arguments, message, weights, capsys):
    assert (
        command_line.run("predict", lambda: predict.main(["--weights", weights, *arguments])) == 2
    )
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
