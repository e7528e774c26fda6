import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convit_jax.models.gpsa import GPSA, attention_centres, relative_positions


def make_layer(num_heads, head_dim=4, **options):
    return GPSA(num_heads, head_dim, rngs=nnx.Rngs(0), **options)


def nonlocality(attention, grid):
    """D of each head (paper Eq. 8): the mean distance of attended patches, in patches."""
    distance = jnp.sqrt(relative_positions(grid)[..., 2])
    return jnp.mean(jnp.sum(attention * distance, axis=-1), axis=-1)


def test_relative_positions_point_from_query_to_key_in_row_major_order():
    r = relative_positions((2, 3))
    assert r.shape == (6, 6, 3)
    # From the first patch to the last: two columns right, one row down.
    assert r[0, 5].tolist() == [2.0, 1.0, 5.0]
    assert r[5, 0].tolist() == [-2.0, -1.0, 5.0]
    assert not r[jnp.arange(6), jnp.arange(6)].any()


@pytest.mark.parametrize(
    ("num_heads", "taps"),
    [(1, [0.0]), (4, [-0.5, 0.5]), (9, [-1, 0, 1]), (16, [-1.5, -0.5, 0.5, 1.5])],
)
def test_attention_centres_are_the_taps_of_a_kernel(num_heads, taps):
    centres = attention_centres(num_heads)
    assert centres.tolist() == [[x, y] for x in taps for y in taps]


def test_the_initial_v_pos_is_that_of_the_released_code():
    kernel = make_layer(9, locality_strength=0.5).pos_proj.kernel[...]
    # Head h1 + 3 h2 of the released code: 0.5 (2 (h2 - 1), 2 (h1 - 1), -1).
    expected = [
        [0.5 * 2 * (h2 - 1), 0.5 * 2 * (h1 - 1), -0.5] for h2 in range(3) for h1 in range(3)
    ]
    np.testing.assert_allclose(kernel.T, expected)


@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0])
@pytest.mark.parametrize("grid", [(3, 5), (1, 1), (4, 1)])
def test_positional_attention_is_the_softmax_over_all_patches(grid, scale):
    """With its gradient; at a scale of 10 nearly all of it is on one key."""
    graph, parameters = nnx.split(make_layer(4))
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(scale * rng.normal(size=(3, 4)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(4, grid[0] * grid[1], grid[0] * grid[1])), jnp.float32)

    def separable(kernel):
        layer = nnx.merge(graph, parameters)
        layer.pos_proj.kernel = nnx.Param(kernel)
        return layer.positional_attention(grid)

    def definition(kernel):
        return jax.nn.softmax(jnp.moveaxis(relative_positions(grid) @ kernel, -1, 0))

    np.testing.assert_allclose(separable(kernel), definition(kernel), rtol=2e-5, atol=1e-30)
    ours, theirs = (jax.grad(lambda k, f=f: jnp.sum(f(k) * weights))(kernel)
                    for f in (separable, definition))  # fmt: skip
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("num_heads", "positional_distance", "mixture_distance"),
    [(4, 0.9860, 2.6789), (9, 1.2623, 2.8809), (16, 1.5616, 3.0997)],
)
def test_nonlocality_at_initialisation(num_heads, positional_distance, mixture_distance):
    grid = (14, 14)
    layer = make_layer(num_heads)
    positional = layer.positional_attention(grid)
    uniform = jnp.full_like(positional, 1 / 196)
    gate = layer.gate()[:, None, None]
    np.testing.assert_allclose(gate, 0.7311, atol=1e-4)
    assert nonlocality(uniform, grid).mean() == pytest.approx(7.2808, abs=1e-4)
    assert nonlocality(positional, grid).mean() == pytest.approx(positional_distance, abs=1e-4)
    mixture = (1 - gate) * uniform + gate * positional
    assert nonlocality(mixture, grid).mean() == pytest.approx(mixture_distance, abs=1e-4)


@pytest.mark.parametrize(
    ("strength", "expected"),
    [(0.01, 5.9014), (0.1, 2.6617), (0.5, 1.4913), (2.0, 1.1221), (10.0, 1.0137)],
)
def test_nonlocality_falls_with_locality_strength(strength, expected):
    positional = make_layer(9, locality_strength=strength).positional_attention((14, 14))
    assert nonlocality(positional, (14, 14)).mean() == pytest.approx(expected, abs=1e-4)


def test_nonlocality_of_each_head_of_nine():
    heads = nonlocality(make_layer(9).positional_attention((14, 14)), (14, 14)).reshape(3, 3)
    np.testing.assert_allclose(heads[::2, ::2], 1.4846, atol=1e-4)
    np.testing.assert_allclose(heads[1, ::2], 1.1657, atol=1e-4)
    np.testing.assert_allclose(heads[1, 1], 0.7594, atol=1e-4)


@pytest.mark.parametrize("grid", [(6, 6), (5, 7)])
def test_nine_local_heads_are_a_convolution_with_replicate_padding(grid):
    head_dim, width = 2, 18
    layer = make_layer(9, head_dim, locality_strength=60.0)
    layer.gating[...] = jnp.full(9, 60.0)
    images = np.random.default_rng(0).normal(size=(2, *grid, width)).astype(np.float32)
    output = layer(jnp.asarray(images).reshape(2, -1, width), grid).reshape(images.shape)

    # A head's rows of W_out are the convolution kernel's tap at the head's centre.
    w_out = np.asarray(layer.proj.kernel[...]).reshape(9, head_dim, width)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    expected = np.zeros_like(images)
    for head, (x, y) in enumerate(attention_centres(9).astype(int)):
        channels = slice(head * head_dim, (head + 1) * head_dim)
        rows, columns = slice(1 + y, 1 + y + grid[0]), slice(1 + x, 1 + x + grid[1])
        expected += padded[:, rows, columns, channels] @ w_out[head]
    np.testing.assert_allclose(output, expected, atol=1e-6)


def test_the_output_uses_the_attention_map():
    layer = make_layer(4)
    x = jax.random.normal(jax.random.key(1), (2, 6, 16))
    maps = layer.attention_map(x, (2, 3))
    np.testing.assert_allclose(maps.sum(-1), 1.0, rtol=1e-6)
    values = layer.v(x).reshape(2, 6, 4, 4)
    heads = jnp.einsum("bhnm,bmhd->bnhd", maps, values).reshape(2, 6, 16)
    np.testing.assert_allclose(layer(x, (2, 3)), layer.proj(heads), atol=1e-6)


def test_without_gating_the_gate_is_fixed_at_one_half():
    layer = make_layer(4, use_gating=False)
    assert layer.gate().tolist() == [0.5] * 4
    assert "gating" not in nnx.to_pure_dict(nnx.state(layer, nnx.Param))


def test_values_start_as_the_identity_only_with_convolutional_init():
    assert jnp.array_equal(make_layer(4).v.kernel[...], jnp.eye(16))
    random = make_layer(4, conv_init=False).v.kernel[...]
    assert 0 < jnp.abs(random).max() < 0.1
