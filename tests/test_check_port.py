"""scripts/check_port.sh, on weights and images that stand in for the published ones."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from convit_jax import models
from convit_jax.analysis.published import GATES, NUM_IMAGES, TABLE_1, published
from convit_jax.data.sources import imagenet
from convit_jax.errors import InputError
from convit_jax.weights import Card, Weights, new_path, open_weights, to_torch, write_weights
from tests.helpers import load_module, random_parameters, write_random_weights

FLAGS = ("validation", "real", "v2", "imagenet-a", "imagenet-r", "sketch")


@pytest.fixture(scope="module")
def script(repository):
    return load_module(repository / "scripts" / "check_port.py")


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """A directory with convit_tiny.safetensors: the printed gates, the rest is zero."""
    directory = tmp_path_factory.mktemp("released")
    architecture = models.architecture("convit_tiny")
    tensors = dict(to_torch(random_parameters(architecture, scale=0.0), architecture))
    for layer, printed in GATES["convit_tiny"].items():
        gates = np.clip(printed, 1e-4, None)
        name = f"blocks.{layer - 1}.attn.gating_param"
        tensors[name] = np.log(gates / (1 - gates)).astype(np.float32)
    weights = Weights("stand-in", tensors, Card())
    write_weights(weights, new_path(str(directory / "convit_tiny.safetensors")), architecture)
    return directory


def test_without_data_parameters_and_gates_are_checked_and_the_rest_is_named(stand_in, repository):
    result = subprocess.run(
        [repository / "scripts/check_port.sh", "--weights", stand_in.name, "--models=convit_tiny"],
        cwd=stand_in.parent, env=os.environ | {"PYTHON": sys.executable},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    rows = [" ".join(line.split()) for line in result.stdout.splitlines()]
    gates = "0.00 0.09 0.51 0.73"
    assert any(f"layer 2 paper, Fig. 16 {gates} {gates}" in row for row in rows)
    assert any("parameters layout 5,710,512 5,710,512 +0.000 yes" in row for row in rows)
    assert "not checked: imagenet2012 (no --validation)" in rows
    assert rows[-1] == "3 of 3 checked facts hold"


def test_a_wrong_gate_fails(script, stand_in, monkeypatch, capsys):
    def opened(file):
        weights = open_weights(file)
        gating = "blocks.1.attn.gating_param"
        # σ of the third head is 0.52 rather than 0.51.
        changed = weights.tensors[gating] + np.float32([0, 0, 0.04, 0])
        return dataclasses.replace(weights, tensors={**weights.tensors, gating: changed})

    monkeypatch.setattr(script, "open_weights", opened)
    assert script.main([f"--weights={stand_in}", "--models=convit_tiny"]) == 1
    printed = capsys.readouterr().out
    (row,) = (line.split() for line in printed.splitlines() if "layer 2" in line)
    assert row[-2:] == ["+0.010", "NO"]
    assert "2 of 3 checked facts hold" in printed


@pytest.fixture
def fake_evaluate(script, monkeypatch):
    """The flags of each evaluation, whose results are as published, and a dict to change some."""
    calls, answers = [], {}

    def evaluate(argv):
        flags = dict(flag.removeprefix("--").partition("=")[::2] for flag in argv)
        calls.append(flags)
        dataset = f"{flags['classes-of']} clean" if "classes-of" in flags else flags["data"]
        mask = next(
            ((kind, int(flags[flag] or 0)) for kind, flag in (
                ("pos_embed", "mask-pos-embed"), ("content", "mask-content"),
                ("position", "mask-position")) if flag in flags),
            ("", 0),
        )  # fmt: skip
        known = published("convit_tiny", dataset, mask)
        record = {
            "examples": NUM_IMAGES[dataset], "top1": known.top1 / 100,
            "top5": (known.top5 or 90) / 100, "loss": known.loss or 2.0,
        }  # fmt: skip
        print(json.dumps(record | answers.get((dataset, mask), {})))

    monkeypatch.setattr(script.evaluate, "main", evaluate)
    return calls, answers


def run_on_all_data(script, stand_in):
    datasets = [f"--{flag}={name}" for flag, name in zip(FLAGS, script.DATASETS, strict=True)]
    return script.main([f"--weights={stand_in}", "--models=convit_tiny", *datasets])


def test_with_all_data_every_published_accuracy_is_checked(script, stand_in, fake_evaluate, capsys):
    calls, _ = fake_evaluate
    assert run_on_all_data(script, stand_in) == 0
    printed = capsys.readouterr().out
    # Tables 5 and 6 have seven masked evaluations; A and R are also evaluated "clean".
    assert len(calls) == 6 + 7 + 2
    assert [(call["data"], call["classes-of"]) for call in calls if "classes-of" in call] == [
        ("imagenet2012", "imagenet_a"), ("imagenet2012", "imagenet_r"),
    ]  # fmt: skip
    assert all(call["exif-rotation"] == "ignore" and "json" in call for call in calls)
    # Table 1, and the released code's top-1, top-5 and loss; two of timm's for each other set.
    assert f"\n{3 + 1 + 3 + 2 + 7 + 7 * 3} of 37 checked facts hold" in printed
    assert "not checked: imagenet" not in printed


@pytest.mark.parametrize(
    ("key", "answer", "fact"),
    [
        (("imagenet2012", ("", 0)), {"top1": 0.7290}, "imagenet2012: top-1"),
        (("imagenet2012", ("", 0)), {"loss": 1.18}, "imagenet2012: loss"),
        (("imagenet2012", ("", 0)), {"examples": 49_999}, "imagenet2012: images"),
        (("imagenet2012", ("position", 5)), {"top1": 0.529}, "mask-position 5: top-1"),
        (("imagenet2012", ("pos_embed", 0)), {"top1": float("nan")}, "mask-pos-embed: top-1"),
        (("imagenet_r", ("", 0)), {"top5": 0.52}, "imagenet_r: top-5"),
        (("imagenet_a clean", ("", 0)), {"top1": 0.9}, "imagenet_a clean: top-1"),
    ],
)
def test_one_wrong_accuracy_fails(script, stand_in, fake_evaluate, capsys, key, answer, fact):
    fake_evaluate[1][key] = answer
    assert run_on_all_data(script, stand_in) == 1
    rows = [line for line in capsys.readouterr().out.splitlines() if line.rstrip().endswith("NO")]
    assert rows
    assert all(fact in row for row in rows)


def test_small_weights_are_evaluated_on_a_folder(script, tmp_path, monkeypatch, capsys):
    """By the real evaluation, of one mask only."""
    small = {"image_size": 32, "head_dim": 4, "depth": 4, "gpsa_layers": 3}
    architecture = models.architecture("convit_tiny", **small)
    monkeypatch.setattr(script, "GATES", {})  # of later layers
    write_random_weights(architecture, tmp_path / "convit_tiny.safetensors")
    for shade, name in enumerate(imagenet.class_ids()[:4]):
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.new("RGB", (40, 40), (9, 60 * shade, 9)).save(tmp_path / "val" / name / "a.png")
    monkeypatch.setattr(script, "MASKS", (("position", 3),))
    flags = [f"--weights={tmp_path}", f"--validation=folder:{tmp_path}/val", "--num-workers=0"]
    assert script.main([*flags, "--models=convit_tiny"]) == 1
    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert any("imagenet2012: images the dataset 50,000 4 -49,996.000 NO" in row for row in rows)
    assert any("mask-position 3: top-1 paper, Table 6 63.5" in row for row in rows)


def test_copies_with_other_tensors_differ(script, stand_in):
    weights = open_weights(stand_in / "convit_tiny.safetensors")
    same = dataclasses.replace(weights, name="timm's")
    changed = weights.tensors["norm.bias"] + np.float32(1e-7)
    other = dataclasses.replace(weights, tensors={**weights.tensors, "norm.bias": changed})
    _, fact = script.weights_facts("convit_tiny", [weights, same])
    assert fact.holds()
    _, fact = script.weights_facts("convit_tiny", [weights, other])
    assert not fact.holds()


def test_what_cannot_be_fetched_is_named_and_nothing_checked_is_a_failure(
    script, monkeypatch, capsys
):
    def unreachable(location):
        raise InputError(f"{location} could not be fetched")

    monkeypatch.setattr(script, "open_weights", unreachable)
    assert script.main(["--models=convit_base"]) == 1
    printed = capsys.readouterr().out
    assert "convit_base.pth could not be fetched" in printed
    assert "hf://timm/convit_base.fb_in1k could not be fetched" in printed


def test_weights_of_another_model_are_refused(script, tmp_path):
    small = {"image_size": 32, "head_dim": 4, "depth": 3, "gpsa_layers": 2}
    architecture = models.architecture("convit_tiny", **small)
    write_random_weights(architecture, tmp_path / "convit_tiny.safetensors")
    message = "layer 10 has 0 gates, expected 4: these are not the weights of convit_tiny"
    with pytest.raises(InputError, match=message):
        script.main([f"--weights={tmp_path}", "--models=convit_tiny"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--models=convit_tniy"], "'convit_tniy', did you mean 'convit_tiny'"),
        (["--models="], "'', expected one of convit_base, convit_small, convit_tiny"),
        (["--weights=nowhere"], "--weights=nowhere: expected convit_tiny.safetensors or conv"),
    ],
)
def test_a_wrong_flag_is_one_sentence(script, flags, message):
    with pytest.raises(InputError, match=message):
        script.main(flags)


def test_the_expected_numbers_are_complete(script):
    assert {name.removesuffix(" clean") for name in NUM_IMAGES} == set(script.DATASETS)
    for model, layers in GATES.items():
        assert all(len(gates) == models.architecture(model).num_heads for gates in layers.values())
    for model, (top1, top5) in TABLE_1.items():
        released = published(model, "imagenet2012")
        assert abs(released.top1 - top1) <= script.ACCURACY + script.HALF_A_TENTH
        assert abs(released.top5 - top5) <= script.ACCURACY
