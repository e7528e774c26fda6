"""What overlays and explore.html are made of; `test_explore_page.py` opens the page."""

import base64
import dataclasses
import json
import re
import zlib

import numpy as np
import pytest

from convit_jax.analysis import exploration, figures, locality
from convit_jax.analysis.exploration import FLOOR, LEVELS, MAX_BITS, pack, quantise
from convit_jax.analysis.figures import AttentionRow, Overlay
from convit_jax.analysis.findings import collect_findings
from convit_jax.analysis.image_attention import attention_in_images
from convit_jax.data.images.preprocessing import Preprocessing
from convit_jax.models import create_model


def attention_maps(spread, tokens=60, seed=0):
    """Softmax of normal scores: [2, tokens, tokens]."""
    scores = np.random.default_rng(seed).normal(0, spread, (2, tokens, tokens))
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)


def dequantise(quantised):
    low, step = quantised.low[:, None, None], quantised.step[:, None, None]
    weights = np.exp(low + step * (quantised.codes.astype(float) - 1))
    return np.where(quantised.codes > 0, weights, 0)


@pytest.mark.parametrize("spread", [0.0, 0.01, 1.0, 8.0])
@pytest.mark.parametrize("levels", LEVELS)
def test_quantised_weights_are_within_the_error_that_is_stated(spread, levels):
    weights = attention_maps(spread)
    quantised = quantise(weights, levels)
    restored, floor = dequantise(quantised), FLOOR / weights.shape[-1]
    stored = weights >= floor
    assert np.array_equal(restored > 0, stored)
    relative = np.abs(restored[stored] / weights[stored] - 1)
    assert relative.max() <= quantised.error + 1e-6
    # Weights from `FLOOR` / T to 1 are in reach, so the worst error is that of a range of 60,000.
    assert quantised.error <= np.expm1(np.log(60_000) / (levels - 1) / 2) + 1e-9
    if spread >= 1:
        assert relative.max() > quantised.error / 2  # nor is it exaggerated


def test_a_picture_never_takes_more_than_its_share():
    """Codes of which each is as frequent as any other cannot be compressed."""
    rng = np.random.default_rng(0)
    flat = np.exp(rng.uniform(np.log(1e-4), 0, (3, 120, 120))).astype(np.float32)
    packed, error = pack([flat])
    assert 3 / 4 * len(packed[0]["codes"]) <= 1.01 * MAX_BITS / 8 * flat.size
    assert error == quantise(flat, LEVELS[1]).error
    # At ConViT-S: ten layers of 196 tokens, two of 197, nine heads, four letters for three bytes.
    letters = 4 / 3 * 1.01 * MAX_BITS / 8 * 9 * (10 * 196**2 + 2 * 197**2)
    assert letters < 4.82e6
    _, error = pack([attention_maps(8.0)])
    assert error == quantise(attention_maps(8.0), LEVELS[0]).error


@pytest.fixture(scope="module", params=["convit_tiny", "deit_tiny"])
def model(request):
    fields = {"num_classes": 7, "image_size": (24, 40), "patch_size": 8, "depth": 3, "head_dim": 4}
    gpsa = {"gpsa_layers": 2} if request.param.startswith("convit") else {}
    return create_model(request.param, **(fields | gpsa))


def test_content_mixed_with_position_is_the_attention_of_the_model(model):
    images = np.random.default_rng(0).normal(size=(2, 24, 40, 3)).astype(np.float32)
    photographs = np.zeros((2, 24, 40, 3), np.uint8)
    names = tuple("abcdefg")
    records = attention_in_images(model, images, photographs, ["one", "two"], names)
    expected = model.attention_maps(images)
    gpsa = locality.gpsa_attention(model)
    for number, record in enumerate(records):
        for layer, content in enumerate(record.content):
            mixture = content
            if layer < len(gpsa):
                gate = np.asarray(gpsa[layer].gate())[:, None, None]
                position = np.asarray(gpsa[layer].positional_attention((3, 5)))
                mixture = (1 - gate) * content + gate * position
            assert np.allclose(mixture, expected[layer][number], atol=1e-6)
        assert np.allclose(record.rollout, model.attention_rollout(images)[number], atol=1e-6)
        shares = np.exp(np.asarray(model(images)[number], float))
        order = np.argsort(-shares)[:5]
        assert [name for name, _ in record.classes] == [names[k] for k in order]
        assert np.allclose(
            [p for _, p in record.classes], (shares / shares.sum())[order], atol=1e-5
        )
    assert [record.name for record in records] == ["one", "two"]


def test_a_model_without_a_head_has_no_classes():
    model = create_model("deit_tiny", num_classes=0, image_size=16, patch_size=8, depth=1)
    images = np.zeros((1, 16, 16, 3), np.float32)
    (record,) = attention_in_images(model, images, images.astype(np.uint8), ["x"], ())
    assert record.classes == []


def test_overlays_show_the_gate_of_each_head():
    rng = np.random.default_rng(0)
    rows = [
        AttentionRow("layer 1", rng.uniform(size=(2, 3, 5)), np.array([0.25, 0.75]), (1, 2)),
        AttentionRow("layer 2", rng.uniform(size=(2, 3, 5)), None, (1, 2)),
    ]
    rollout = np.linspace(0.01, 0.05, 15).reshape(3, 5)
    with_gates = Overlay("A", rng.integers(0, 255, (24, 40, 3), np.uint8), [("cat", 0.8)], rollout,
                         np.array([[0.25, 0.75]]), rows)  # fmt: skip
    grey = rng.integers(0, 255, (24, 40, 1), np.uint8)
    without = Overlay("B", grey, [], np.full((3, 5), 0.02), np.zeros((0, 2)), rows[1:])
    figure = figures.overlays([with_gates, without])
    axes = [a for a in figure.axes if a.axison and a.get_label() != "<colorbar>"]
    assert [a.get_title() for a in axes] == [
        "A: cat, 80%", "rollout, from 1.00% to 5.00% a patch", "gates σ(λ)",
        "1, σ = 0.25", "2, σ = 0.75", "head 1", "head 2",
        "B", "rollout, from 2.00% to 2.00% a patch", "head 1", "head 2",
    ]  # fmt: skip
    photograph, colours = axes[1].get_images()
    assert photograph.get_array().shape == (24, 40)
    opacity = colours.get_array()[..., 3]
    assert np.array_equal(np.argsort(opacity, axis=None), np.arange(15))  # as the rollout


def test_a_page_needs_no_other_file_and_cannot_be_broken_by_a_name(tmp_path):
    model = create_model("deit_tiny", num_classes=2, image_size=16, patch_size=8, depth=1)
    pixels = np.zeros((1, 16, 16, 3), np.uint8)
    findings = collect_findings("</script><b>", model, pixels, Preprocessing((16, 16)))
    records = attention_in_images(
        model, Preprocessing((16, 16)).normalise(pixels), pixels, ["<i>.jpg"], ["</script>", "b"]
    )
    findings = dataclasses.replace(findings, in_images=records)
    path = exploration.write_exploration([findings], tmp_path)
    page = path.read_text()
    assert page.count("</script>") == 2
    assert "<i>" not in page
    assert not re.search(r"(src|href)=|https?:|@import", re.sub(r"data:[^\"]*", "", page))
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
    assert data["models"][0]["name"] == "</script><b>"
    (layer,) = data["models"][0]["images"][0]["layers"]
    codes = zlib.decompress(base64.b64decode(layer["codes"]))
    assert len(codes) == 3 * 5 * 5
