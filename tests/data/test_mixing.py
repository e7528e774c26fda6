import jax.numpy as jnp
import numpy as np

from convit_jax.data.mixing import normalise, soft_labels


def test_normalise_is_in_units_of_the_deviation_from_the_mean():
    images = jnp.asarray([[[[0, 255, 51]]]], jnp.uint8)
    out = normalise(images, (0.5, 0.5, 0.2), (0.5, 0.25, 1.0))
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out[0, 0, 0], [-1.0, 2.0, 0.0], atol=1e-6)


def test_soft_labels_conserve_mass():
    labels = soft_labels(jnp.asarray([2, 0]), 4, 0.2)
    np.testing.assert_allclose(labels, [[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]])
    np.testing.assert_allclose(labels.sum(-1), 1.0)
