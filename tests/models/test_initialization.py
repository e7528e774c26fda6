"""The rivals of the convolutional start: each tested against its definition."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convit_jax.errors import InputError
from convit_jax.models import architecture, build
from convit_jax.models.initialization import (
    impulse_offsets,
    impulse_queries_keys,
    mimetic_queries_keys,
    mimetic_values_output,
    sinusoidal_positions,
)

SMALL = {"depth": 2, "num_heads": 4, "head_dim": 8, "patch_size": 4, "image_size": (20, 24)}


def make(**overrides):
    return build(architecture("deit_tiny", **SMALL | {"num_classes": 3} | overrides), seed=1)


def products(queries_keys, num_heads):
    """W_qry W_keyᵀ of each head: [H, C, C]."""
    queries, keys = np.split(np.asarray(queries_keys), 2, axis=1)
    heads = zip(np.split(queries, num_heads, 1), np.split(keys, num_heads, 1), strict=True)
    return np.stack([q @ k.T for q, k in heads])


def test_mimetic_products_are_the_identity_and_noise():
    width = 64
    (product,) = products(mimetic_queries_keys(jax.random.key(0), 1, width), 1)
    noise = product / 0.7 - np.eye(width)
    assert noise.mean() == pytest.approx(0, abs=0.01)
    assert noise.std() == pytest.approx(width**-0.5, rel=0.05)
    values, output = mimetic_values_output(jax.random.key(0), width)
    noise = np.asarray(values @ output) / 0.4 + np.eye(width)
    assert noise.mean() == pytest.approx(0, abs=0.01)
    assert noise.std() == pytest.approx(width**-0.5, rel=0.05)


def test_mimetic_heads_have_the_best_approximation_of_their_rank():
    """By Eckart and Young: what is left out is orthogonal to, and smaller than, what is kept."""
    full = jax.random.normal(jax.random.key(0), (4, 32, 32)) * 32**-0.5 + jnp.eye(32)
    target = 0.7 * np.asarray(full)
    made = products(mimetic_queries_keys(jax.random.key(0), 4, 8), 4)
    for product, wanted in zip(made, target, strict=True):
        left_out = wanted - product
        kept = np.linalg.svd(product, compute_uv=False)
        assert kept[8] < 1e-5 < kept[7]
        assert np.linalg.svd(left_out, compute_uv=False)[0] <= kept[7] + 1e-5
        assert np.abs(product.T @ left_out).max() < 1e-5


def test_mimetic_attention_of_a_token_to_itself():
    images = np.random.default_rng(0).normal(size=(2, 20, 24, 3)).astype(np.float32)
    for attention in make(init="mimetic").attention_maps(images):
        own = np.einsum("bhii->bhi", attention)[:, :, 1:].mean()
        assert own > 4 / attention.shape[-1]  # uniform attention: 1 / 31


@pytest.mark.parametrize("class_token_position", [True, False])
def test_impulse_attention_to_the_positions_is_a_one_hot_at_the_heads_offset(class_token_position):
    model = make(init="impulse", class_token_position=class_token_position)
    rows, columns = model.architecture.grid
    y, x = np.divmod(np.arange(rows * columns), columns)
    positions = model.pos_embed[...][:, -rows * columns :]
    offsets = set()
    for block in model.blocks:
        for attention in np.asarray(block.attention_map(positions, (rows, columns))[0]):
            key, centre = attention.argmax(axis=-1), 2 * columns + 2
            dx, dy = x[key[centre]] - x[centre], y[key[centre]] - y[centre]
            inside = np.isin(x + dx, range(columns)) & np.isin(y + dy, range(rows))
            expected = (y + dy) * columns + x + dx
            assert (key == expected)[inside].all()
            assert attention[inside, expected[inside]].mean() > 0.6
            offsets.add((dx, dy))
    assert len(offsets) > 3
    assert offsets <= {(dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)}


def test_impulse_offsets_are_those_of_the_weights():
    key, grid = jax.random.key(3), (6, 5)
    weights = impulse_queries_keys(key, grid, 9, 8)
    positions = np.asarray(sinusoidal_positions(grid, 72), np.float64)
    positions = positions - positions.mean(1, keepdims=True)
    positions /= positions.std(1, keepdims=True)
    centre = 3 * 5 + 2
    offsets = np.asarray(impulse_offsets(key, 9))
    for product, (dx, dy) in zip(products(weights, 9), offsets, strict=True):
        scores = positions[centre] @ product @ positions.T / 8**0.5
        assert scores.argmax() == (3 + dy) * 5 + 2 + dx
        assert scores.max() - scores.mean() == pytest.approx(20, rel=0.3)
    assert len({tuple(o) for o in offsets}) > 3


def test_impulse_leaves_values_and_output_alone():
    plain, impulse = (make(init=init).blocks[1].attention for init in ("default", "impulse"))
    assert not np.allclose(plain.qkv.kernel[...][:, :64], impulse.qkv.kernel[...][:, :64])
    for layer in (plain, impulse):
        assert layer.qkv.kernel[...][:, 64:].std() == pytest.approx(0.02, rel=0.1)
        assert layer.proj.kernel[...].std() == pytest.approx(0.02, rel=0.1)


def test_sinusoidal_positions():
    positions = sinusoidal_positions((3, 5), 8, class_tokens=1)
    assert not positions[0].any()
    row, column = 2, 3
    waves = [np.sin(column), np.sin(column / 100), np.cos(column), np.cos(column / 100)]
    waves += [np.sin(row), np.sin(row / 100), np.cos(row), np.cos(row / 100)]
    assert positions[1 + row * 5 + column] == pytest.approx(waves, abs=1e-6)


@pytest.mark.parametrize("init", ["mimetic", "impulse"])
def test_rivals_start_from_sinusoidal_positions_and_the_seed(init):
    model = make(init=init)
    expected = sinusoidal_positions((5, 6), 32, class_tokens=1)
    assert np.array_equal(model.pos_embed[...][0], expected)
    kernel = model.blocks[0].attention.qkv.kernel[...]
    assert np.array_equal(kernel, make(init=init).blocks[0].attention.qkv.kernel[...])
    other = build(dataclasses.replace(model.architecture), seed=2).blocks[0].attention.qkv
    assert not np.array_equal(kernel[:, :64], other.kernel[...][:, :64])
    assert not np.array_equal(kernel, model.blocks[1].attention.qkv.kernel[...])


def test_convolutional_is_the_default_of_a_convit():
    options = {"depth": 2, "gpsa_layers": 1, "patch_size": 4, "image_size": 16, "head_dim": 4}
    inits = ("default", "convolutional")
    models = [build(architecture("convit_tiny", init=init, **options)) for init in inits]
    states = [jax.tree.leaves(nnx.state(model)) for model in models]
    assert all(map(np.array_equal, *states))


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("deit_tiny", {"init": "mimetc"}, "init='mimetc': expected 'default' or 'convolution"),
        ("deit_tiny", {"init": "convolutional"}, "expected a model with GPSA layers"),
        ("convit_tiny", {"init": "convolutional", "conv_init": False}, "expected conv_init=True"),
        ("convit_tiny", {"init": "mimetic"}, "expected a model without GPSA layers"),
        ("convit_tiny", {"init": "impulse"}, "expected a model without GPSA layers"),
        ("deit_tiny", {"init": "impulse", "use_pos_embed": False}, "expected use_pos_embed=True"),
        ("deit_tiny", {"init": "impulse", "image_size": 16}, "expected at least 2 x 2 patches, no"),
        ("deit_tiny", {"init": "mimetic", "head_dim": 7}, "that is a multiple of 4, not 21"),
    ],
)
def test_contradictions_are_refused_in_a_sentence(name, overrides, message):
    with pytest.raises(InputError, match=message):
        architecture(name, **overrides)
