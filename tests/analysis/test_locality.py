"""Gates, non-locality and the geometry of heads, held to facts §4 and to plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convit_jax.analysis import locality
from convit_jax.errors import InputError
from convit_jax.models import create_model

TINY = {"num_classes": 5, "image_size": 32, "patch_size": 8, "depth": 3, "head_dim": 4}


def make(name="convit_tiny", **changes):
    fields = TINY | ({"gpsa_layers": 2} if name.startswith("convit") else {}) | changes
    return create_model(name, **fields)


def make_images(count=3, size=(32, 32), seed=0):
    return np.random.default_rng(seed).normal(size=(count, *size, 3)).astype(np.float32)


# (heads, α): mean over heads of the positional half's non-locality at initialisation, on 14 x 14.
AT_INITIALISATION = [
    (4, 1.0, 0.9860), (9, 1.0, 1.2623), (16, 1.0, 1.5616),
    (9, 0.01, 5.9014), (9, 0.1, 2.6617), (9, 0.5, 1.4913), (9, 2.0, 1.1221), (9, 10.0, 1.0137),
]  # fmt: skip


@pytest.mark.parametrize(("heads", "strength", "expected"), AT_INITIALISATION)
def test_a_fresh_layer_looks_as_far_as_the_reference_says(heads, strength, expected):
    model = make(num_heads=heads, image_size=112, depth=1, gpsa_layers=1,
                 locality_strength=strength)  # fmt: skip
    assert model.architecture.grid == (14, 14)
    found = nnx.jit(locality.positional_nonlocality)(model)
    assert found.shape == (1, heads)
    assert float(found.mean()) == pytest.approx(expected, abs=1e-4)


def test_corners_edges_and_centre_of_nine_heads():
    found = locality.positional_nonlocality(make(num_heads=9, image_size=112, gpsa_layers=1))
    corner, edge, centre = 1.4846, 1.1657, 0.7594
    expected = [corner, edge, corner, edge, centre, edge, corner, edge, corner]
    assert np.allclose(found[0], expected, atol=1e-4)


@pytest.mark.parametrize(("heads", "expected"), [(4, 2.6789), (9, 2.8809), (16, 3.0997)])
def test_uniform_content_mixed_with_fresh_positions(heads, expected):
    """σ(1) of position and the rest alike over all patches; plain attention alone is 7.2808."""
    model = make(num_heads=heads, image_size=112, depth=2, gpsa_layers=1)
    for block in model.blocks:
        projection = block.attention.qk if hasattr(block.attention, "qk") else block.attention.qkv
        projection.kernel[...] = jnp.zeros_like(projection.kernel[...])
    found = locality.measure_locality(model, make_images(2, (112, 112)))
    assert found.nonlocality[0].mean() == pytest.approx(expected, abs=1e-4)
    # The class token takes one 197th of the last layer's attention.
    assert found.nonlocality[1].mean() == pytest.approx(7.2808 * 196 / 197, abs=1e-3)
    assert found.to_class_token[1] == pytest.approx(1 / 197)
    assert found.entropy[1] == pytest.approx(np.log(197), rel=1e-5)
    assert not found.to_class_token[0].any()


def expected_of(attention, grid):
    """Non-locality, entropy and attention to the class token, image by image, by loops."""
    tokens = attention.shape[-1]
    extra = tokens - grid[0] * grid[1]
    places = [(i // grid[1], i % grid[1]) for i in range(tokens - extra)]
    results = []
    for image in attention.astype(np.float64):
        for head in image:
            far = np.mean([
                sum(head[i + extra, j + extra] * np.hypot(a[0] - b[0], a[1] - b[1])
                    for j, b in enumerate(places))
                for i, a in enumerate(places)
            ])  # fmt: skip
            entropy = np.mean([-sum(p * np.log(p) for p in row if p > 0) for row in head[extra:]])
            results.append((far, entropy, head[extra:, :extra].sum(axis=-1).mean()))
    return np.reshape(results, (*attention.shape[:2], 3)).mean(axis=0)


@pytest.mark.parametrize("name", ["convit_tiny", "deit_tiny"])
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_every_layer_is_measured_on_its_own_input(name, size):
    model, images = make(name, image_size=size), make_images(3, size)
    found = locality.measure_locality(model, images)
    assert found.examples == 3
    maps = nnx.jit(lambda model, images: model.attention_maps(images))(model, images)
    for layer, attention in enumerate(maps):
        expected = expected_of(np.asarray(attention), model.architecture.grid)
        measured = (found.nonlocality[layer], found.entropy[layer], found.to_class_token[layer])
        assert np.allclose(np.stack(measured, axis=-1), expected, atol=1e-5)


def test_the_released_code_s_variant_gives_every_layer_the_bare_patches():
    model, images = make(), make_images()
    found = locality.measure_locality(model, images, variant="released")
    patches = model.embed_patches(images)
    for layer, block in enumerate(model.blocks):
        attention = np.asarray(block.attention.attention_map(patches, (4, 4)))
        expected = expected_of(attention, (4, 4))
        assert np.allclose(found.nonlocality[layer], expected[:, 0], atol=1e-5)
    assert not np.allclose(found.nonlocality, locality.measure_locality(model, images).nonlocality)


def test_batches_of_any_size_give_the_same(monkeypatch):
    model, images = make(), make_images(5)
    whole = locality.measure_locality(model, images)
    monkeypatch.setattr(locality, "_MAX_IMAGES", 2)
    parts = locality.measure_locality(model, images)
    assert parts.examples == 5
    assert np.allclose(whole.nonlocality, parts.nonlocality, atol=1e-6)


def test_memory_is_bounded_by_fewer_images_at_once():
    small = make().architecture
    large = make("convit_base", image_size=448, depth=1, gpsa_layers=1).architecture
    assert locality.images_at_once(small) == 32
    assert 1 <= locality.images_at_once(large) * 16 * 3137**2 * 4 / 2**20 <= 640


def test_gates_are_the_sigmoids():
    model = make()
    model.blocks[1].attention.gating[...] = jnp.array([-30.0, 0.0, 2.0, 30.0])
    found = locality.gates(model)
    assert np.allclose(found[0], 0.7310586)
    assert np.allclose(found[1], [0, 0.5, 0.880797, 1], atol=1e-6)
    assert locality.gates(make("deit_tiny")).shape == (0, 3)
    assert np.array_equal(locality.gates(make(use_gating=False)), np.full((2, 4), 0.5))


def test_the_geometry_of_fresh_heads_is_their_initialisation():
    found = locality.head_geometry(make(num_heads=9, locality_strength=2.0))
    assert found.centre.shape == (2, 9, 2)
    assert {tuple(c) for c in found.centre[0]} == {(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)}
    assert np.allclose(found.strength, 2.0)
    assert np.allclose(found.span, 0.5)


def test_a_head_moved_by_training_is_found_where_it_looks():
    """The centre is where positional attention is largest, and a head without one has none."""
    model = make(image_size=112)
    attention = model.blocks[0].attention
    attention.pos_proj.kernel[...] = jnp.array(
        [[2.0, 0.0, 0, 0.3], [0, -3.0, 0, 0.2], [-0.5, -0.5, -1, 0.1]]
    )
    found = locality.head_geometry(model)
    assert np.allclose(found.centre[0, :3], [[2, 0], [0, -3], [0, 0]])
    assert np.isnan(found.centre[0, 3]).all()
    assert np.isnan(found.span[0, 3])
    assert found.strength[0, 3] == pytest.approx(-0.1)
    maps = attention.positional_attention((14, 14))
    query = 6 * 14 + 6
    assert np.unravel_index(maps[0, query].argmax(), (14, 14)) == (6, 8)
    assert np.unravel_index(maps[1, query].argmax(), (14, 14)) == (3, 6)


def test_what_cannot_be_measured_is_told_in_a_sentence():
    model = make()
    with pytest.raises(InputError, match="no image to measure"):
        locality.measure_locality(model, make_images(0))
    with pytest.raises(InputError, match="expected propagated or released"):
        locality.measure_locality(model, make_images(), variant="relased")
    with pytest.raises(InputError, match="images have shape"):
        locality.measure_locality(model, make_images(size=(40, 32)))


def test_it_can_be_jitted_whole():
    model = make()
    graph, state = nnx.split(model)
    sums = jax.jit(lambda s, x: locality.sum_locality(nnx.merge(graph, s), x))(state, make_images())
    assert sums["nonlocality"].shape == (3, 4)
    assert sums["examples"] == 3
