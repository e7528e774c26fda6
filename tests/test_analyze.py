"""python -m convit_jax.analyze."""

import base64
import csv
import dataclasses
import html.parser
import json
import re

import numpy as np
import pytest
from etils import epath
from PIL import Image

import convit_jax
from convit_jax import analyze
from convit_jax.analysis import locality
from convit_jax.data.images.preprocessing import Preprocessing
from convit_jax.errors import InputError
from convit_jax.models import build
from convit_jax.weights import (
    Card,
    Weights,
    creating,
    initial_model,
    open_weights,
    to_torch,
    write_weights,
)
from convit_jax.weights.model_checkpoints import find_checkpoint, read_run
from tests.helpers import parameters_by_name


@pytest.fixture(scope="session")
def history_workdir(make_config, tmp_path_factory):
    """Workdir of a run with two evaluations."""
    from convit_jax.training import loop

    directory = tmp_path_factory.mktemp("analysed")
    loop.train(
        make_config(train_for="4 steps", eval_every="2 steps", attention_images=8), str(directory)
    )
    return directory


@pytest.fixture
def plain(tmp_path):
    """Weights of a DeiT with another image size and other heads than the run's model."""
    fields = {"num_classes": 10, "image_size": (16, 24), "patch_size": 8, "in_channels": 1,
              "num_heads": 2, "head_dim": 4, "depth": 3}  # fmt: skip
    model = convit_jax.create_model("deit_tiny", **fields)
    tensors = to_torch(parameters_by_name(model), model.architecture)
    card = Card(model.architecture, mean=(0.5,), std=(0.5,))
    path = epath.Path(tmp_path / "plain.safetensors")
    write_weights(Weights("plain", tensors, card), path, model.architecture)
    return path


class Page(html.parser.HTMLParser):
    """Image sources and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.images, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.images.append(dict(attributes)["src"])

    def handle_data(self, data):
        self.text += data


def test_report_of_a_workdir_with_history_and_masks(history_workdir, tmp_path, run_command):
    out = tmp_path / "out"
    code, output = run_command(
        analyze, "--weights", history_workdir, "--images", "digits:test", "--count", "20",
        "--out", out, "--pictures", "2", "--layers", "1,2",
    )  # fmt: skip
    assert code == 0, output.err
    names = {"nonlocality_over_training", "nonlocality_by_layer", "gates_over_training",
             "gates_by_layer", "positions", "attention_1", "attention_2",
             "mean_attention", "masks"}  # fmt: skip
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
    assert "digits:test: measured on 20" in page.text
    assert "http" not in re.sub(r"data:[^\"]*", "", (out / "report.html").read_text())

    masked = {(row["masked"], row["layers"]): float(row["top1"])
              for row in csv.DictReader((out / "masks.csv").open())}  # fmt: skip
    assert masked.keys() == {("none", "0"), ("pos_embed", "0"), ("content", "1"), ("position", "1")}


def test_measurements_are_those_of_the_model(history_workdir, tmp_path, run_command):
    code, output = run_command(
        analyze, "--weights", history_workdir, "--images", "digits:test", "--count", "5",
        "--pictures", "0", "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    assert code == 0, output.err
    model = convit_jax.load_model(history_workdir)
    source = convit_jax.data.open_source("digits:test")
    preprocessing = Preprocessing((8, 8), 0.875, (0.3,), (0.4,))
    pixels = [preprocessing.crop(source[i * len(source) // 5][0]) for i in range(5)]
    expected = locality.measure_locality(model, preprocessing.normalise(np.stack(pixels)))
    rows = list(csv.DictReader((tmp_path / "out" / "heads.csv").open()))
    assert len(rows) == 2 * 4
    nonlocality = np.reshape([float(row["nonlocality"]) for row in rows], (2, 4))
    assert np.allclose(nonlocality, expected.nonlocality, atol=1e-5)
    gates = [float(row["gate"]) for row in rows if row["gate"]]
    assert np.allclose(gates, np.asarray(locality.gates(model))[0])
    layers = [json.loads(line) for line in output.out.splitlines()]
    assert [layer["kind"] for layer in layers] == ["GPSA", "plain"]
    assert layers[1]["nonlocality"] == pytest.approx(expected.nonlocality[1].mean(), abs=1e-5)


def test_comparison_on_an_unlabelled_image(history_workdir, plain, tmp_path, run_command):
    """One image of another shape; models with different grids, one without GPSA."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 90), np.uint8)).save(
        tmp_path / "one.png"
    )
    code, output = run_command(
        analyze, "--weights", history_workdir, "--compare", plain, "--name", "ours",
        "--name", "plain", "--images", tmp_path / "one.png", "--out", tmp_path / "out", "--overlay",
    )  # fmt: skip
    assert code == 0, output.err
    names = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert names == {"nonlocality_over_training", "nonlocality_by_layer", "gates_over_training_1",
                     "gates_by_layer_1", "positions_1", "attention_1", "overlay_1"}  # fmt: skip
    page = (tmp_path / "out" / "explore.html").read_text()
    assert "Where ours and plain look" in page
    assert "one.png" in page
    assert str(tmp_path) not in page  # a page is shared: it says nothing of the machine
    assert "explore.html, to open in a browser" in output.out
    assert "ours and plain" in (tmp_path / "out" / "report.html").read_text()


def test_downloaded_weights_of_a_model_without_gates(plain, tmp_path, run_command, monkeypatch):
    from convit_jax.weights import loading

    monkeypatch.setattr(loading, "fetch", lambda name: plain)
    code, output = run_command(
        analyze, "--weights", "https://host/plain.safetensors", "--images", "digits:test",
        "--count", "3", "--pictures", "1", "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 0, output.err
    names = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert names == {"nonlocality_by_layer", "attention_1", "mean_attention"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--query", "2,0"], "query 2,0 is outside the grid of 2 x 2 patches"),
        (["--query", "middle"], "--query=middle: expected ROW,COLUMN"),
        (["--layers", "1,9"], "layer 9: the model's layers are 1 to 2"),
        (["--layers", "first"], "expected numbers separated by commas, such as 2,10"),
        (["--count", "0"], "--count=0: expected at least 1"),
        (["--images", "EMPTY"], "no images"),
        (["--images", "nothing*.jpg"], "no file matches nothing*.jpg"),
        (["--images", "BROKEN"], "cannot read the image"),
        (["--images", "digits:test", "digits:train"], "expected a single dataset"),
        (["--compare", "SAME"], "expected different names, by --name for each"),
        (["--name", "a", "--name", "b"], "--name is given 2 times for 1 models"),
        (["--out", "FILE"], "cannot be used as a directory"),
        (["--quary", "1,1"], "did you mean '--query'?"),
    ],
)
def test_input_errors_are_one_sentence_and_code_2(
    arguments, message, workdir, tmp_path, run_command
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_bytes(b"not an image")
    (tmp_path / "file").write_text("")
    paths = {"EMPTY": tmp_path / "empty", "BROKEN": tmp_path / "broken.png", "SAME": workdir,
             "FILE": tmp_path / "file"}  # fmt: skip
    arguments = [paths.get(a, a) for a in arguments]
    required = {"--weights": workdir, "--images": "digits:test", "--out": tmp_path / "out"}
    for flag, value in required.items():
        if flag not in arguments:
            arguments += [flag, value]
    code, output = run_command(analyze, *arguments)
    assert code == 2, output.err
    assert message in output.err.splitlines()[-1]
    assert "Traceback" not in output.err


def test_documented_python_code_runs(history_workdir, repository, tmp_path, monkeypatch):
    (code,) = re.findall(
        r"```python\n(.*?)```", (repository / "docs/analysis.md").read_text(), re.S
    )
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    code = code.replace("runs/convit", str(history_workdir)).replace("query=(2, 2)", "query=(1, 1)")
    variables = {}
    exec(code, variables)
    assert variables["maps"].shape == (2, 2, 4, 2, 2)
    assert (tmp_path / "nonlocality.pdf").stat().st_size > 1000


def test_the_model_before_training_beside_it(history_workdir, tmp_path, run_command):
    out = tmp_path / "out"
    code, output = run_command(
        analyze, "--weights", history_workdir, "--initial", "--images", "digits:test", "--count",
        "9", "--pictures", "0", "--layers", "1", "--name", "ours", "--out", out, "--json",
    )  # fmt: skip
    assert code == 0, output.err
    gates = {}
    for line in output.out.splitlines():
        record = json.loads(line)
        gates.setdefault(record["model"], []).append(record["gate"])
    assert list(gates) == ["ours before training", "ours"]
    before = [gate for gate in gates["ours before training"] if gate is not None]
    assert before == pytest.approx([1 / (1 + np.exp(-1))] * len(before))
    assert before
    assert {path.stem for path in out.glob("*.png")} >= {"mean_attention", "positions_2"}


@pytest.mark.parametrize(
    ("weights", "more", "message"),
    [
        ("PLAIN", [], "plain.safetensors is not a run of train.py"),
        ("RUN", ["--override", "image_size=16"], "--initial=True: expected no --override with it"),
    ],
)
def test_what_has_no_initial_model(
    weights, more, message, plain, history_workdir, tmp_path, run_command
):
    path = {"PLAIN": plain, "RUN": history_workdir}[weights]
    code, output = run_command(
        analyze, "--weights", path, "--initial", "--images", "digits:test", "--out",
        tmp_path / "out", *more,
    )  # fmt: skip
    assert code == 2
    assert message in output.err.splitlines()[-1]


def test_the_initial_model_is_that_of_the_run(history_workdir, monkeypatch):
    weights = open_weights(str(history_workdir))
    seed = json.loads((history_workdir / "config.json").read_text())["seed"]
    expected = parameters_by_name(build(weights.card.architecture, seed))
    for name, value in parameters_by_name(initial_model(weights)).items():
        assert np.array_equal(value, expected[name])
    run = read_run(find_checkpoint(weights.directory))
    started = dataclasses.replace(run, config=dict(run.config) | {"init_from": "x.pth"})
    monkeypatch.setattr(creating, "read_run", lambda _: started)
    with pytest.raises(InputError, match=r"did not start from new parameters but from x\.pth"):
        initial_model(weights)


def test_vanilla_attention_has_maps_and_no_gates(tmp_path, run_command):
    fields = {"num_classes": 10, "image_size": 8, "patch_size": 2, "in_channels": 1, "head_dim": 4,
              "depth": 2, "gpsa_layers": 1, "positional_attention": "vanilla"}  # fmt: skip
    model = convit_jax.create_model("convit_tiny", **fields)
    tensors = to_torch(parameters_by_name(model), model.architecture)
    path = epath.Path(tmp_path / "vanilla.safetensors")
    card = Card(model.architecture, tuple("0123456789"), mean=(0.5,), std=(0.5,))
    write_weights(Weights("vanilla", tensors, card), path, model.architecture)
    out = tmp_path / "out"
    code, output = run_command(analyze, "--weights", path, "--images", "digits:test", "--count",
                               "4", "--pictures", "1", "--overlay", "--out", out)  # fmt: skip
    assert code == 0, output.err
    rows = list(csv.DictReader((out / "heads.csv").open()))
    assert {row["positional_share"] for row in rows if row["layer"] == "1"} == {""}
    assert {row["gate"] for row in rows} == {""}
    first = [float(row["nonlocality"]) for row in rows if row["layer"] == "1"]
    assert max(first) < 1.3  # a convolution on a grid of 4 x 4: uniform attention has 1.7
    assert "PSA" in Page((out / "report.html").read_text()).text
    names = {path.stem for path in out.glob("*.png")}
    assert names == {"nonlocality_by_layer", "positions", "attention_1", "mean_attention",
                     "overlay_1"}  # fmt: skip
