"""python -m convit_jax.analyze."""

import base64
import csv
import html.parser
import json
import re

import numpy as np
import pytest
from etils import epath
from flax import nnx
from PIL import Image

import convit_jax
from convit_jax import analyze
from convit_jax.analysis import locality
from convit_jax.console.command_line import run
from convit_jax.data.images.preprocessing import Preprocessing
from convit_jax.weights import Card, Weights, to_torch, write_weights


@pytest.fixture(scope="session")
def history_workdir(make_config, tmp_path_factory):
    """A run of two evaluations."""
    from convit_jax.training import loop

    directory = tmp_path_factory.mktemp("analysed")
    loop.train(
        make_config(train_for="4 steps", eval_every="2 steps", attention_images=8), str(directory)
    )
    return directory


@pytest.fixture
def plain(tmp_path):
    """A DeiT of another size of image and other heads than the run's model."""
    fields = {"num_classes": 10, "image_size": (16, 24), "patch_size": 8, "in_channels": 1,
              "num_heads": 2, "head_dim": 4, "depth": 3}  # fmt: skip
    model = convit_jax.create_model("deit_tiny", **fields)
    params = nnx.to_flat_state(nnx.state(model, nnx.Param))
    tensors = to_torch({".".join(map(str, k)): v[...] for k, v in params}, model.architecture)
    card = Card(model.architecture, mean=(0.5,), std=(0.5,))
    path = epath.Path(tmp_path / "plain.safetensors")
    write_weights(Weights("plain", tensors, card), path, model.architecture)
    return path


def told(arguments, capsys):
    code = run("analyze", lambda: analyze.main([str(a) for a in arguments]))
    return code, capsys.readouterr()


class Page(html.parser.HTMLParser):
    """Sources of images, and the text."""

    def __init__(self, text):
        super().__init__()
        self.images, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.images.append(dict(attributes)["src"])

    def handle_data(self, data):
        self.text += data


def test_a_workdir_is_shown_with_its_history_and_masks(history_workdir, tmp_path, capsys):
    out = tmp_path / "out"
    code, said = told(
        ["--weights", history_workdir, "--images", "digits:test", "--count", "20", "--out", out,
         "--pictures", "2", "--layers", "1,2"], capsys,
    )  # fmt: skip
    assert code == 0, said.err
    names = {"nonlocality_over_training", "nonlocality_by_layer", "gates_over_training",
             "gates_by_layer", "positions", "attention_1", "attention_2", "masks"}  # fmt: skip
    expected = {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    expected |= {"heads.csv", "history.csv", "masks.csv", "report.html"}
    assert {path.name for path in out.iterdir()} == expected
    for name in names:
        with Image.open(out / f"{name}.png") as image:
            assert len(np.unique(np.asarray(image.convert("L")))) > 10
        assert (out / f"{name}.svg").read_text().lstrip().startswith("<?xml")

    page = Page((out / "report.html").read_text())
    assert len(page.images) == len(names)
    assert all(re.match(r"data:image/(png|svg\+xml);base64,", source) for source in page.images)
    assert base64.b64decode(page.images[-1].partition(",")[2])
    assert "20 measured on" in page.text
    assert "http" not in re.sub(r"data:[^\"]*", "", (out / "report.html").read_text())

    masked = {(row["masked"], row["layers"]): float(row["top1"])
              for row in csv.DictReader((out / "masks.csv").open())}  # fmt: skip
    assert masked.keys() == {("none", "0"), ("pos_embed", "0"), ("content", "1"), ("position", "1")}


def test_the_numbers_are_the_model_s(history_workdir, tmp_path, capsys):
    code, said = told(
        ["--weights", history_workdir, "--images", "digits:test", "--count", "5", "--pictures", "0",
         "--out", tmp_path / "out", "--json"], capsys,
    )  # fmt: skip
    assert code == 0, said.err
    model = convit_jax.load_model(history_workdir)
    source = convit_jax.data.open_source("digits:test")
    how = Preprocessing((8, 8), 0.875, (0.3,), (0.4,))
    pixels = [how.crop(source[i * len(source) // 5][0]) for i in range(5)]
    expected = locality.measure_locality(model, how.normalise(np.stack(pixels)))
    rows = list(csv.DictReader((tmp_path / "out" / "heads.csv").open()))
    assert len(rows) == 2 * 4
    found = np.reshape([float(row["nonlocality"]) for row in rows], (2, 4))
    assert np.allclose(found, expected.nonlocality, atol=1e-5)
    gates = [float(row["gate"]) for row in rows if row["gate"]]
    assert np.allclose(gates, np.asarray(locality.gates(model))[0])
    layers = [json.loads(line) for line in said.out.splitlines()]
    assert [layer["kind"] for layer in layers] == ["GPSA", "plain"]
    assert layers[1]["nonlocality"] == pytest.approx(expected.nonlocality[1].mean(), abs=1e-5)


def test_models_side_by_side_on_a_bare_image_of_another_shape(
    history_workdir, plain, tmp_path, capsys
):
    """One image without a label; models of different grids, one without GPSA."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 90), np.uint8)).save(
        tmp_path / "one.png"
    )
    code, said = told(
        ["--weights", history_workdir, "--compare", plain, "--name", "ours", "--name", "plain",
         "--images", tmp_path / "one.png", "--out", tmp_path / "out"], capsys,
    )  # fmt: skip
    assert code == 0, said.err
    names = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert names == {"nonlocality_over_training", "nonlocality_by_layer", "gates_over_training_1",
                     "gates_by_layer_1", "positions_1", "attention_1"}  # fmt: skip
    assert "ours and plain" in (tmp_path / "out" / "report.html").read_text()


def test_downloaded_weights_of_a_model_without_gates(plain, tmp_path, capsys, monkeypatch):
    from convit_jax.weights import loading

    monkeypatch.setattr(loading, "fetch", lambda name: plain)
    code, said = told(
        ["--weights", "https://host/plain.safetensors", "--images", "digits:test", "--count", "3",
         "--pictures", "1", "--out", tmp_path / "out"], capsys,
    )  # fmt: skip
    assert code == 0, said.err
    names = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert names == {"nonlocality_by_layer", "attention_1"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--query", "2,0"], "query 2,0 is outside the grid of 2 x 2 patches"),
        (["--query", "middle"], "--query=middle: expected ROW,COLUMN"),
        (["--layers", "1,9"], "layer 9: the model's layers are 1 to 2"),
        (["--layers", "first"], "expected numbers with commas between them, such as 2,10"),
        (["--count", "0"], "--count=0: expected at least 1"),
        (["--images", "EMPTY"], "no images"),
        (["--images", "nothing*.jpg"], "no file matches nothing*.jpg"),
        (["--images", "BROKEN"], "cannot read the image"),
        (["--images", "digits:test", "digits:train"], "expected one name of examples"),
        (["--compare", "SAME"], "tell them apart by --name"),
        (["--name", "a", "--name", "b"], "--name is given 2 times for 1 models"),
        (["--out", "FILE"], "cannot be used as a directory"),
        (["--quary", "1,1"], "did you mean '--query'?"),
    ],
)
def test_a_mistake_is_one_sentence_and_code_2(arguments, words, workdir, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_bytes(b"not an image")
    (tmp_path / "file").write_text("")
    places = {"EMPTY": tmp_path / "empty", "BROKEN": tmp_path / "broken.png", "SAME": workdir,
              "FILE": tmp_path / "file"}  # fmt: skip
    given = [places.get(a, a) for a in arguments]
    required = {"--weights": workdir, "--images": "digits:test", "--out": tmp_path / "out"}
    rest = [part for flag, value in required.items() if flag not in given for part in (flag, value)]
    code, said = told([*rest, *given], capsys)
    assert code == 2, said.err
    assert words in said.err.splitlines()[-1]
    assert "Traceback" not in said.err


def test_the_documented_lines_of_python_run(history_workdir, repository, tmp_path, monkeypatch):
    (code,) = re.findall(
        r"```python\n(.*?)```", (repository / "docs/analysis.md").read_text(), re.S
    )
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    code = code.replace("runs/convit", str(history_workdir)).replace("query=(2, 2)", "query=(1, 1)")
    found = {}
    exec(code, found)
    assert found["maps"].shape == (2, 2, 4, 2, 2)
    assert (tmp_path / "nonlocality.pdf").stat().st_size > 1000
