"""Classifiers on a model's features."""

import numpy as np
import pytest

import convit_jax
from convit_jax import data
from convit_jax.data.images.preprocessing import Preprocessing
from convit_jax.errors import RunError
from convit_jax.evaluation.probing import embed_examples, probe


def clusters(directions, count, noise, seed):
    """Return features around one direction per class, of random lengths, and labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % len(directions)
    features = np.float32(directions)[labels] + noise * rng.normal(size=(count, len(directions[0])))
    return (features * rng.uniform(0.1, 10, (count, 1))).astype(np.float32), labels


def test_neighbours_are_near_in_direction_not_in_length():
    directions = [[1.0, 0, 0], [0, 1.0, 0], [1.0, 1.0, 0.5]]
    result = probe(clusters(directions, 90, 0.05, seed=0), clusters(directions, 60, 0.05, seed=1))
    assert (result.train_examples, result.examples, result.neighbours) == (90, 60, 20)
    assert result.knn_top1 == 1.0
    assert 0.6 < result.linear_top1 <= 1.0


def test_features_without_information_are_at_chance():
    rng = np.random.default_rng(0)
    train, test = (
        (rng.normal(size=(n, 8)).astype(np.float32), rng.integers(0, 4, n)) for n in (400, 400)
    )
    result = probe(train, test)
    assert 0.15 < result.knn_top1 < 0.35
    assert 0.15 < result.linear_top1 < 0.35


def test_fewer_examples_than_neighbours_are_enough():
    directions = [[1.0, 0], [0, 1.0]]
    result = probe(clusters(directions, 6, 0.01, seed=0), clusters(directions, 4, 0.01, seed=1))
    assert (result.neighbours, result.knn_top1) == (6, 1.0)


def test_one_class_cannot_be_learnt_from():
    train = np.zeros((3, 2), np.float32), np.zeros(3, int)
    with pytest.raises(RunError, match="at least two classes"):
        probe(train, train)


def test_examples_are_embedded_in_order_each_once():
    source = data.open_source("digits:test")
    model = convit_jax.create_model(
        "convit_tiny", 10, 8, in_channels=1, patch_size=2, depth=2, gpsa_layers=1, head_dim=8
    )
    preprocessing = Preprocessing((8, 8), 1.0, (0.5,), (0.25,))
    features, labels = embed_examples(
        model, source, preprocessing, batch_size=128, options=data.LoaderOptions()
    )
    assert features.shape == (397, 32)
    examples = [source[index] for index in range(len(source))]
    pixels = np.stack([preprocessing.crop(encoded) for encoded, _ in examples])
    expected = model.features(preprocessing.normalise(pixels))
    np.testing.assert_allclose(features, expected, atol=1e-5)
    np.testing.assert_array_equal(labels, [label for _, label in examples])
