"""The losses, by NumPy in float64 from their definitions."""

import numpy as np
import pytest

from convit_jax.errors import InputError
from convit_jax.training import make_experiment
from convit_jax.training.losses import Loss, mean_loss

LOGITS = np.random.default_rng(0).normal(0, 3, (4, 5))
# Two smoothed labels, and two mixtures.
LABELS = np.full((4, 5), 0.02)
LABELS[np.arange(4), [0, 3, 1, 2]] += [0.9, 0.9, 0.7, 0.55]
LABELS[[2, 3], [4, 0]] += [0.2, 0.35]
WEIGHTS = (0.5, 2.0, 1.0, 3.0, 0.25)


def binary(logits, targets, weights):
    """The mean over images and classes, each a term of one class."""
    terms = [
        w * y * np.log1p(np.exp(-z)) + (1 - y) * np.log1p(np.exp(z))
        for row, target in zip(logits, targets, strict=True)
        for z, y, w in zip(row, target, weights, strict=True)
    ]
    return sum(terms) / len(terms)


@pytest.mark.parametrize("weights", [(), WEIGHTS])
@pytest.mark.parametrize("threshold", [None, 0.0, 0.2])
def test_the_binary_loss_is_the_mean_of_every_classs_cross_entropy(threshold, weights):
    targets = LABELS if threshold is None else (threshold < LABELS).astype(float)
    ours = mean_loss(LOGITS, LABELS, Loss("binary", threshold, weights))
    assert float(ours) == pytest.approx(binary(LOGITS, targets, weights or np.ones(5)), rel=1e-5)


def test_large_logits_have_finite_losses():
    loss = mean_loss(np.array([[100.0, -100.0]]), np.array([[0.0, 1.0]]), Loss("binary"))
    assert float(loss) == pytest.approx(100.0)


@pytest.mark.parametrize("weights", [(), WEIGHTS])
def test_class_weights_multiply_each_classs_share_of_a_mixed_label(weights):
    exponentials = np.exp(LOGITS)
    log_probabilities = np.log(exponentials / exponentials.sum(1, keepdims=True))
    expected = -(LABELS * (weights or np.ones(5)) * log_probabilities).sum(1).mean()
    ours = mean_loss(LOGITS, LABELS, Loss("softmax", None, weights))
    assert float(ours) == pytest.approx(expected, rel=1e-5)


def test_the_configs_loss_is_the_steps(make_config):
    config = make_config(loss="binary", loss_threshold=0.3, class_weights=WEIGHTS)
    experiment = make_experiment(config, num_examples=100, num_classes=5)
    assert experiment.step_config.loss == Loss("binary", 0.3, WEIGHTS)
    with pytest.raises(InputError, match="class_weights has 5 values: expected 10, one for each"):
        make_experiment(config, num_examples=100, num_classes=10)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"loss_threshold": 0.2}, "loss_threshold=0.2 would not be read, as config.loss is 'soft"),
        ({"loss": "bce"}, "loss='bce': expected 'softmax' or 'binary'"),
        ({"class_weights": (1.0, 0.0)}, "class_weights=.*: expected above 0"),
        ({"class_weights": (1.0, 2.0), "balance_classes": True}, r"class_weights=.*expected \(\) "),
    ],
)
def test_a_mistake_is_one_sentence(make_config, overrides, message):
    with pytest.raises(InputError, match=message):
        make_config(**overrides)
