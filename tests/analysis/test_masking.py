import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convit_jax.analysis import mask_content, mask_pos_embed, mask_position
from convit_jax.errors import InputError
from convit_jax.models import create_model


@pytest.fixture
def model():
    return create_model(
        "convit_tiny",
        num_classes=5,
        image_size=32,
        patch_size=8,
        depth=3,
        gpsa_layers=2,
        head_dim=4,
    )


@pytest.fixture
def images():
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)


def test_masked_content_leaves_positional_attention(model, images):
    mask_content(model, 1)
    first, second, _ = model.attention_maps(images)
    positional = model.blocks[0].attention.positional_attention((4, 4))
    assert np.abs(first - positional).max() < 1e-6
    assert np.array_equal(first[0], first[1])  # independent of the image
    assert not np.array_equal(second[0], second[1])
    assert np.array_equal(model.blocks[0].attention.gate(), np.ones(4))


def test_masked_position_leaves_content_attention(model, images):
    block = model.blocks[0]
    x = block.norm1(model.embed(images))
    q, k = block.attention._queries_keys(x)
    scores = np.einsum("bnhd,bmhd->bhnm", q, k) * 4**-0.5
    expected = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    mask_position(model, 2)
    assert np.abs(model.attention_maps(images)[0] - expected).max() < 1e-6
    assert not np.asarray(model.blocks[1].attention.gate()).any()


@pytest.mark.parametrize("mask", [mask_content, mask_position])
def test_output_of_a_masked_layer_agrees_with_its_attention_map(mask, model, images):
    """Output and map are computed by different code, which must agree at σ(λ) = 0 and 1."""
    mask(model, 2)
    attention = model.blocks[0].attention
    x = model.blocks[0].norm1(model.embed(images))
    v = attention.v(x).reshape(2, 16, 4, 4)
    heads = np.einsum("bhnm,bmhd->bnhd", attention.attention_map(x, (4, 4)), v)
    expected = attention.proj(jnp.asarray(heads.reshape(2, 16, 16)))
    assert np.abs(attention(x, (4, 4)) - expected).max() < 1e-5
    assert np.isfinite(model(images)).all()


def test_without_absolute_positions_equal_patches_give_equal_tokens(model, images):
    mask_pos_embed(model)
    tokens = model.embed(jnp.ones_like(images))
    assert np.abs(tokens - tokens[:, :1]).max() < 1e-6


def test_ungated_models_can_be_masked(images):
    model = create_model(
        "convit_tiny", image_size=32, patch_size=8, depth=2, gpsa_layers=1, use_gating=False
    )
    mask_content(model, 1)
    assert np.array_equal(model.blocks[0].attention.gate(), np.ones(4))
    nnx.split(model, nnx.Param)  # does not fail: the gate is an ordinary parameter


@pytest.mark.parametrize(
    ("layers", "message"),
    [(0, "cannot mask 0 GPSA layers"), (3, "its GPSA layers are the first 2")],
)
def test_nonexistent_gpsa_layers(layers, message, model):
    with pytest.raises(InputError, match=message):
        mask_content(model, layers)


def test_deit_has_no_gates_to_mask():
    with pytest.raises(InputError, match="it has none"):
        mask_position(create_model("deit_tiny", image_size=32, depth=1), 1)
