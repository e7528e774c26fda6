"""Features, feature maps and attention rollout, against the reference's tokens and definitions."""

import numpy as np
import pytest

import convit_jax
from convit_jax.errors import InputError


@pytest.fixture(params=["four_heads", "nine_heads"])
def case(request, reference_data):
    """A model with reference weights, and the reference's images and tokens."""
    model = convit_jax.load_model(reference_data / f"{request.param}.safetensors")
    with np.load(reference_data / f"{request.param}.npz") as reference:
        return model, dict(reference)


def assert_close(actual, expected):
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


def as_maps(tokens, grid):
    """[B, N or N + 1, C] → [B, rows, columns, C]."""
    rows, columns = grid
    return tokens[:, -rows * columns :].reshape(len(tokens), rows, columns, -1)


def test_features_are_the_references(case):
    model, reference = case
    assert_close(model.features(reference["images"]), reference["features"])


def test_feature_maps_are_the_references_tokens_in_rows_and_columns(case):
    model, reference = case
    grid = model.architecture.grid
    expected = [as_maps(reference[f"block_{n:02d}"], grid) for n in range(4)]
    maps = model.feature_maps(reference["images"])
    assert len(maps) == model.architecture.depth == 4
    for actual, tokens in zip(maps, expected, strict=True):
        assert_close(actual, tokens)
    last, second = model.feature_maps(reference["images"], layers=[-1, 1])
    assert_close(last, expected[3])
    assert_close(second, expected[1])


def test_the_model_runs_once_for_all_layers(case, monkeypatch):
    model, reference = case
    calls, trace = [], type(model).trace
    monkeypatch.setattr(type(model), "trace", lambda *a: calls.append(a) or trace(*a))
    model.feature_maps(reference["images"])
    assert len(calls) == 1


def test_normed_maps_are_what_timms_forward_features_returns(case):
    """The last norm of every token: (x - mean) / std, scaled and shifted."""
    model, reference = case
    x = as_maps(reference["block_03"], model.architecture.grid).astype(np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    expected = x * model.norm.scale[...] + model.norm.bias[...]
    (actual,) = model.feature_maps(reference["images"], layers=[-1], norm=True)
    assert_close(actual, expected)


def test_the_rollout_is_the_product_of_the_layers_averages(case):
    model, reference = case
    maps = [np.asarray(layer, np.float64) for layer in model.attention_maps(reference["images"])]
    tokens = maps[-1].shape[-1]
    for image, actual in enumerate(model.attention_rollout(reference["images"])):
        flow = np.eye(tokens)
        for layer in maps:
            attention = np.eye(tokens)  # the class token, before it exists, attends to itself
            first = tokens - layer.shape[-1]
            attention[first:, first:] = layer[image].mean(axis=0)
            flow = (attention + np.eye(tokens)) / 2 @ flow
        np.testing.assert_allclose(flow.sum(axis=1), 1, rtol=1e-5)
        assert_close(actual, flow[0, 1:].reshape(model.architecture.grid))


@pytest.mark.parametrize("fields", [{"gpsa_layers": 2}, {"gpsa_layers": 3}])
def test_a_model_without_a_class_token_classifies_its_first_patch(fields):
    model = convit_jax.create_model(
        "convit_tiny", 10, 32, head_dim=8, depth=3, patch_size=8, **fields
    )
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    rollout = model.attention_rollout(images)
    has_class_token = fields["gpsa_layers"] < 3
    assert rollout.shape == (2, 4, 4)
    sums = rollout.sum((1, 2))
    assert np.all(sums < 0.9) if has_class_token else np.allclose(sums, 1)
    assert model.feature_maps(images)[-1].shape == (2, 4, 4, 32)


def test_a_model_without_classes_returns_its_features(case, reference_data):
    _, reference = case
    name = "four_heads" if reference["logits"].shape[1] == 10 else "nine_heads"
    model = convit_jax.load_model(reference_data / f"{name}.safetensors", num_classes=0)
    assert model.head is None
    assert_close(model(reference["images"]), reference["features"])


def test_a_fresh_model_without_classes_has_no_head():
    model = convit_jax.create_model(
        "convit_tiny", num_classes=0, image_size=32, depth=2, gpsa_layers=1
    )
    assert model(np.zeros((1, 32, 32, 3), np.float32)).shape == (1, 192)


def test_a_layer_that_does_not_exist_is_an_input_error(case):
    model, reference = case
    with pytest.raises(InputError, match="layers: 4 is none of the model's 4 layers, 0 to 3"):
        model.feature_maps(reference["images"], layers=[4])
