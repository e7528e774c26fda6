import numpy as np
import pytest
from flax import nnx

from convit_jax.analysis import attention
from convit_jax.errors import InputError
from convit_jax.models import architecture, create_model


def make(name="convit_tiny", **changes):
    fields = {"num_classes": 5, "image_size": (24, 40), "patch_size": 8, "depth": 3, "head_dim": 4}
    gpsa = {"gpsa_layers": 2} if name.startswith("convit") else {}
    return create_model(name, **(fields | gpsa | changes))


@pytest.mark.parametrize("name", ["convit_tiny", "deit_tiny"])
def test_attention_of_a_patch_is_a_row_of_the_attention_map(name):
    model = make(name)
    images = np.random.default_rng(0).normal(size=(2, 24, 40, 3)).astype(np.float32)
    maps = attention.attention_from(model, images, (1, 3))
    assert maps.shape == (3, 2, model.architecture.num_heads, 3, 5)
    expected_maps = nnx.jit(lambda model, images: model.attention_maps(images))(model, images)
    for layer, full_map in enumerate(expected_maps):
        class_tokens = full_map.shape[-1] - 15
        expected = np.asarray(full_map)[:, :, class_tokens + 1 * 5 + 3, class_tokens:]
        assert np.allclose(maps[layer], expected.reshape(maps[layer].shape), atol=1e-6)


def test_initial_positional_attention_is_largest_at_the_head_s_centre():
    model = make(num_heads=9, image_size=(40, 40), locality_strength=10.0)
    maps = attention.positional_attention_from(model, (2, 2))
    assert maps.shape == (2, 9, 5, 5)
    peaks = [np.unravel_index(m.argmax(), m.shape) for m in maps[0]]
    assert peaks == [(2 + y, 2 + x) for x in (-1, 0, 1) for y in (-1, 0, 1)]
    initial = attention.initial_attention_from(model.architecture, (2, 2))
    assert np.allclose(initial, maps[0], atol=1e-6)


def test_no_initial_attention_without_a_convolutional_initialisation():
    assert attention.initial_attention_from(make("deit_tiny").architecture, (0, 0)) is None
    assert attention.initial_attention_from(make(conv_init=False).architecture, (0, 0)) is None
    assert attention.positional_attention_from(make("deit_tiny"), (0, 0)).shape == (0, 3, 3, 5)


def test_default_layers_are_those_of_the_paper():
    assert attention.default_layers(architecture("convit_small")) == [1, 4, 7, 10]
    assert attention.default_layers(architecture("deit_small")) == [1, 5, 8, 12]
    assert attention.default_layers(make().architecture) == [1, 2]


@pytest.mark.parametrize("query", [(3, 0), (0, 5), (-1, 0)])
def test_query_outside_the_grid(query):
    with pytest.raises(InputError, match="grid of 3 x 5 patches: expected a row from 0 to 2"):
        attention.check_query(query, (3, 5))


def test_nonexistent_layer():
    with pytest.raises(InputError, match="layer 13: the model's layers are 1 to 12"):
        attention.check_layers([1, 13], 12)


def test_mean_attention_is_the_mean_over_all_images():
    """In several batches, of which the last is smaller."""
    model = make(num_heads=4, image_size=(16, 24))
    images = np.random.default_rng(0).normal(size=(5, 16, 24, 3)).astype(np.float32)
    expected = attention.attention_from(model, 2 * images, (1, 0)).mean(axis=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "images_at_once", lambda _: 2)
        mean = attention.mean_attention_from(model, images, (1, 0), transform=lambda x: 2 * x)
    np.testing.assert_allclose(mean, expected, rtol=1e-5)
