import numpy as np
import pytest

from convit_jax.weights.positions import resample_positions


def test_the_same_grid_changes_nothing():
    positions = np.random.default_rng(0).normal(size=(1, 12, 5)).astype(np.float32)
    assert np.allclose(resample_positions(positions, (3, 4), (3, 4)), positions, atol=1e-6)


def test_the_class_tokens_row_is_unchanged():
    positions = np.random.default_rng(0).normal(size=(1, 17, 5)).astype(np.float32)
    resampled = resample_positions(positions, (4, 4), (6, 8))
    assert resampled.shape == (1, 1 + 48, 5)
    assert np.array_equal(resampled[:, 0], positions[:, 0])


def test_a_ramp_keeps_its_direction_and_slope():
    """A ramp along x (columns) has half the slope on a grid twice as fine, and none along y."""
    ramp = np.broadcast_to(np.arange(8.0, dtype=np.float32), (6, 8)).reshape(1, 48, 1)
    finer = resample_positions(ramp, (6, 8), (6, 16)).reshape(6, 16)
    assert np.diff(finer[:, 4:12], axis=1) == pytest.approx(0.5, abs=1e-4)
    assert np.ptp(finer, axis=0) == pytest.approx(0, abs=1e-5)
