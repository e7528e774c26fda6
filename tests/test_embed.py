"""python -m convit_jax.embed"""

import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

import convit_jax
from convit_jax import embed


@pytest.fixture
def images(tmp_path):
    """A folder with three images and a file that is not an image."""
    for name in ("china", "flower"):
        Image.fromarray(load_sample_image(f"{name}.jpg")).save(tmp_path / f"{name}.jpg")
    Image.fromarray(load_sample_image("china.jpg")[:, ::-1]).save(tmp_path / "mirror.png")
    (tmp_path / "broken.jpg").write_bytes(b"<html>no image</html>")
    return tmp_path


def read_npz(path):
    with np.load(path) as file:
        return list(file["image"]), file["features"]


def read_parquet(path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is an optional extra")
    table = parquet.read_table(path)
    return table["image"].to_pylist(), np.array(table["features"].to_pylist(), np.float32)


@pytest.mark.parametrize(("suffix", "read"), [("npz", read_npz), ("parquet", read_parquet)])
def test_the_file_has_the_models_features(suffix, read, images, reference_data, run_command):
    weights, out = reference_data / "four_heads.safetensors", images / f"features.{suffix}"
    paths = [str(images / name) for name in ("china.jpg", "flower.jpg", "mirror.png")]
    code, output = run_command(
        embed, "--weights", weights, *paths, "--out", out, "--batch-size", "2"
    )
    assert (code, output.out) == (0, f"3 images, 32 features each: {out}\n")
    names, features = read(out)
    assert names == paths
    expected = convit_jax.load_model(weights).features(convit_jax.preprocess(paths, image_size=96))
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, atol=1e-5)


def test_unreadable_images_are_reported_and_the_others_written(images, reference_data, run_command):
    weights, out = reference_data / "four_heads.safetensors", images / "features.npz"
    code, output = run_command(embed, "--weights", weights, images, "--out", out)
    assert code == 1
    assert f"embed: {images}/broken.jpg: not an image of a known format" in output.err
    names, features = read_npz(out)
    assert [name.rpartition("/")[2] for name in names] == ["china.jpg", "flower.jpg", "mirror.png"]
    assert features.shape == (3, 32)


def test_a_file_name_that_is_not_utf8_is_written(images, reference_data, run_command):
    odd = images / "caf\udce9.jpg"
    (images / "china.jpg").rename(odd)
    weights = reference_data / "four_heads.safetensors"
    for suffix, read, name in (
        ("npz", read_npz, "caf\udce9.jpg"),
        ("parquet", read_parquet, "caf\\udce9.jpg"),
    ):
        out = images / f"features.{suffix}"
        code, output = run_command(embed, "--weights", weights, str(odd), "--out", out)
        assert code == 0, output.err
        assert read(out)[0] == [f"{images}/{name}"]


def test_without_pyarrow_the_message_says_what_to_do(images, monkeypatch, run_command):
    monkeypatch.setattr(embed.importlib.util, "find_spec", lambda name: None)
    code, output = run_command(embed, "--weights", "W", images, "--out", "x.parquet")
    assert (code, sys.stderr and output.err.count("\n")) == (2, 1)
    assert "pip install pyarrow; or write .npz" in output.err
