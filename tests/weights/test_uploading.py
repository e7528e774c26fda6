"""Repositories for the Hub: their files, and uploading them to a stand-in of it."""

import json

import numpy as np
import pytest

import convit_jax
from convit_jax import convert, models
from convit_jax.data.images.preprocessing import Preprocessing
from convit_jax.weights import open_weights
from convit_jax.weights.timm_config import timm_config, why_not_in_timm
from tests.weights.hub_server import HubHandler

FILES = ["README.md", "config.json", "model.safetensors"]
TINY = {"depth": 2, "num_classes": 3, "image_size": 32, "patch_size": 8, "head_dim": 8}


@pytest.fixture
def hub(serve, monkeypatch, tmp_path):
    """A stand-in of the Hub, which huggingface_hub takes for the real one, and a token."""
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is an optional extra")
    server = serve(HubHandler)
    server.repositories, server.commits, server.large, server.refusals = {}, [], {}, {}
    use_hub(server.address, monkeypatch, tmp_path)
    return server


def use_hub(address, monkeypatch, tmp_path):
    from huggingface_hub import constants, file_download

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # another service of the Hub
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")


def test_what_is_uploaded_loads_again(hub, workdir, run_command):
    code, output = run_command(convert, workdir, "hf://org/digits")
    assert code == 0, output.err
    assert f"uploaded to {hub.address}/org/digits/commit/" in output.out
    assert hub.commits == [FILES]
    assert {token for _, path, token in hub.requests if path.startswith("/api/models")} == {
        "Bearer hf_secret"
    }
    original, loaded = open_weights(workdir), open_weights("hf://org/digits")
    assert loaded.class_names() == tuple("0123456789")
    assert loaded.preprocessing(loaded.architecture()) == Preprocessing(
        (8, 8), 0.875, (0.3,), (0.4,)
    )
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
    np.testing.assert_array_equal(loaded.model()(images), original.model()(images))


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/commit/main", 403, "the Hub does not let this token write there (403): make one that"),
        ("/commit/main", 500, "the Hub answers 500"),
        ("/repos/create", 401, "the Hub does not let this token write there (401)"),
    ],
)
def test_a_refusal_is_one_sentence_and_nothing_is_half_uploaded(
    path, status, message, hub, reference_data, run_command
):
    hub.refusals[path] = status
    weights = reference_data / "four_heads.safetensors"
    code, output = run_command(convert, weights, "hf://org/name")
    assert code == 2
    assert message in output.err.splitlines()[-1]
    assert output.err.splitlines()[-1].endswith("; nothing was uploaded")
    assert hub.repositories.get("org/name", {}) == {}


def test_weights_that_are_there_are_replaced_on_request_only(hub, reference_data, run_command):
    weights, other = (reference_data / f"{n}.safetensors" for n in ("four_heads", "nine_heads"))
    assert run_command(convert, weights, "hf://org/name")[0] == 0
    code, output = run_command(convert, other, "hf://org/name")
    assert code == 2
    assert "hf://org/name has model.safetensors already: choose another name, or" in output.err
    assert len(hub.commits) == 1
    assert run_command(convert, other, "hf://org/name", "--replace")[0] == 0
    assert convit_jax.load_model("hf://org/name").architecture.num_heads == 9


def test_without_a_network_nothing_is_lost(monkeypatch, tmp_path, reference_data, run_command):
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is an optional extra")
    use_hub("http://127.0.0.1:9", monkeypatch, tmp_path)
    code, output = run_command(convert, reference_data / "four_heads.safetensors", "hf://org/name")
    assert code == 2
    assert "hf://org/name: huggingface.co cannot be reached: " in output.err
    assert output.err.endswith("; nothing was uploaded\n")


def test_without_a_token_the_message_says_how_to_get_one(reference_data, run_command, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    code, output = run_command(convert, reference_data / "four_heads.safetensors", "hf://org/name")
    assert code == 2
    assert "hf://org/name: uploading needs a token of the Hub: make one that can" in output.err
    assert output.err.endswith("then `hf auth login`, or set HF_TOKEN\n")
    assert len(output.err.splitlines()) == 1  # before the weights are opened


def test_a_dry_run_writes_the_files(workdir, tmp_path, run_command):
    """It needs no token and no network, and tells how the weights were trained."""
    directory = tmp_path / "repository"
    code, output = run_command(convert, workdir, "hf://org/digits", "--dry-run", directory)
    assert code == 0, output.err
    assert f"not uploaded; its files are in {directory}" in output.out
    assert sorted(path.name for path in directory.iterdir()) == FILES
    assert convit_jax.load_model(directory).architecture.in_channels == 1
    config = json.loads((directory / "config.json").read_text())
    assert config["architecture"] == "convit_tiny"
    assert config["model_args"] == {
        "img_size": 8, "patch_size": 4, "in_chans": 1, "depth": 2, "embed_dim": 4,
        "local_up_to_layer": 1,
    }  # fmt: skip
    assert config["label_names"] == list("0123456789")
    assert config["pretrained_cfg"]["mean"] == [0.3]
    assert config["pretrained_cfg"]["input_size"] == [1, 8, 8]
    card = (directory / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: timm\npipeline_tag: image-classification\n")
    accuracy = open_accuracy(workdir)
    for part in (
        "Trained on `digits:train`, evaluated on `digits:test`.",
        f"The weights are those at step 2: top-1 accuracy {accuracy:.2f} %.",
        "| `train_for` | 2 steps |",
        'model = convit_jax.load_model("hf://org/digits")',
        'timm.create_model("hf-hub:org/digits", pretrained=True)',
        "mean=(0.3,), std=(0.4,)",
    ):
        assert part in card, part


def open_accuracy(workdir):
    """The accuracy in percent that the run logged last."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return 100 * [line for line in lines if "eval/accuracy" in line][-1]["eval/accuracy"]


def test_the_card_has_no_directories_of_the_machine(reference_data):
    from convit_jax.weights.model_card import model_card
    from convit_jax.weights.model_checkpoints import Run

    data = {"train": "folder:/home/me/flowers", "eval": "", "holdout": 0.1, "fraction": 0.5}
    config = {"data": data, "init_from": "/home/me/x.pth", "train_for": "a|b"}
    a = open_weights(reference_data / "four_heads.safetensors").architecture()
    text = model_card("org/name", a, Preprocessing(), Run(config, 1500, None), 7, "a crop")
    assert "/home" not in text
    assert "`folder:flowers`, evaluated on 10 % of it, which were held out. Of the" in text
    assert "| `init_from` | x.pth |" in text
    assert r"| `train_for` | a\|b |" in text
    assert "Assumed, not known: a crop." in text
    data["train"] = "tfds:flowers:train:/home/me/data"
    text = model_card("org/name", a, Preprocessing(), Run(config, 1500, 0.5), 7, "")
    assert "`tfds:flowers:train`" in text
    assert "Assumed" not in text


@pytest.mark.parametrize(
    ("name", "fields", "expected", "model_args"),
    [
        ("convit_small", {}, "convit_small", None),
        ("deit_base", {"num_classes": 7}, "deit_base_patch16_224", None),
        ("deit3_huge", {}, "deit3_huge_patch14_224", None),
        ("convit_base", {"image_size": 384}, "convit_base", {"img_size": 384}),
        ("convit_tiny_plus", {}, "convit_tiny", {"embed_dim": 64}),
        ("deit_tiny", {"layer_scale": 0.1, "use_pos_embed": False}, "deit3_small_patch16_224",
         {"num_heads": 3, "embed_dim": 192, "no_embed_class": False, "pos_embed": "none"}),
        ("deit_small_distilled", {"layer_scale": 0.1}, "deit_tiny_distilled_patch16_224",
         {"num_heads": 6, "embed_dim": 384, "init_values": 1e-4}),
    ],
)  # fmt: skip
def test_timms_model_and_its_arguments(name, fields, expected, model_args):
    architecture = models.architecture(name, **fields)
    config = timm_config(architecture, Preprocessing(architecture.image_size), None)
    assert config["architecture"] == expected
    assert config.get("model_args") == model_args
    assert config["num_features"] == architecture.width
    distilled = architecture.distillation_token
    classifier = ["head", "head_dist"] if distilled else "head"
    assert config["pretrained_cfg"]["classifier"] == classifier


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("convit_tiny", {"use_gating": False}, "its ConViT has gates in every GPSA layer"),
        ("convit_tiny", {"image_size": (32, 48)}, "its ConViT takes square images only"),
        ("convit_tiny", {"layer_scale": 0.1}, "its ConViT has no LayerScale"),
        ("convit_tiny", {"distillation_token": True}, "its ConViT has no distillation token"),
        ("deit_tiny_distilled", {"class_token_position": False}, "its distilled model has pos"),
    ],
)
def test_what_timm_does_not_have_is_said(name, fields, reason):
    fields |= {"gpsa_layers": 1} if name == "convit_tiny" else {}
    architecture = models.architecture(name, **TINY | fields)
    assert why_not_in_timm(architecture).startswith(reason)
    config = timm_config(architecture, Preprocessing(architecture.image_size), None)
    assert "architecture" not in config
    assert config["pretrained_cfg"]["num_classes"] == 3
