"""Weights for these tests."""

import functools

import jax
import numpy as np
import pytest

from convit_jax.weights import open_weights
from tests.field.weight_files import put_into_hub_cache


@pytest.fixture
def four_heads(reference_data):
    """The reference weights: four heads, four layers of which three GPSA, ten classes, 96 px."""
    return open_weights(reference_data / "four_heads.safetensors")


@pytest.fixture
def assert_agrees(reference_data):
    """A function of a model that asserts that its features and logits match the reference."""

    def check(model, name="four_heads"):
        with np.load(reference_data / f"{name}.npz") as reference:
            trace = jax.jit(model.trace)(reference["images"])
            for field, value in (("features", trace.features), ("logits", trace.logits)):
                expected = reference[field]
                assert np.abs(value - expected).max() < 1e-5 * np.abs(expected).max(), field

    return check


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The cache of an unreachable Hub: a function that puts a file into it."""
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is an optional extra")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return functools.partial(put_into_hub_cache, tmp_path)
