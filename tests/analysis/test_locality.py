"""Gates, non-locality and the geometry of heads, against reference values and plain NumPy."""

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


# (heads, α, mean over heads of the positional non-locality at initialisation), 14 x 14 patches.
AT_INITIALISATION = [
    (4, 1.0, 0.9860), (9, 1.0, 1.2623), (16, 1.0, 1.5616),
    (9, 0.01, 5.9014), (9, 0.1, 2.6617), (9, 0.5, 1.4913), (9, 2.0, 1.1221), (9, 10.0, 1.0137),
]  # fmt: skip


@pytest.mark.parametrize(("heads", "strength", "expected"), AT_INITIALISATION)
def test_initial_positional_nonlocality(heads, strength, expected):
    model = make(num_heads=heads, image_size=112, depth=1, gpsa_layers=1,
                 locality_strength=strength)  # fmt: skip
    assert model.architecture.grid == (14, 14)
    nonlocality = nnx.jit(locality.positional_nonlocality)(model)
    assert nonlocality.shape == (1, heads)
    assert float(nonlocality.mean()) == pytest.approx(expected, abs=1e-4)


def test_initial_nonlocality_of_corner_edge_and_centre_heads():
    nonlocality = locality.positional_nonlocality(make(num_heads=9, image_size=112, gpsa_layers=1))
    corner, edge, centre = 1.4846, 1.1657, 0.7594
    expected = [corner, edge, corner, edge, centre, edge, corner, edge, corner]
    assert np.allclose(nonlocality[0], expected, atol=1e-4)


@pytest.mark.parametrize(("heads", "expected"), [(4, 2.6789), (9, 2.8809), (16, 3.0997)])
def test_nonlocality_of_uniform_content_and_initial_positions(heads, expected):
    """σ(1) of initial positional attention, the rest uniform; plain attention alone is 7.2808."""
    model = make(num_heads=heads, image_size=112, depth=2, gpsa_layers=1)
    for block in model.blocks:
        attention = block.attention
        projection = attention.qk if hasattr(attention, "qk") else attention.qkv
        projection.kernel[...] = jnp.zeros_like(projection.kernel[...])
    measured = locality.measure_locality(model, make_images(2, (112, 112)))
    assert measured.nonlocality[0].mean() == pytest.approx(expected, abs=1e-4)
    # The class token takes one 197th of the last layer's attention.
    assert measured.nonlocality[1].mean() == pytest.approx(7.2808 * 196 / 197, abs=1e-3)
    assert measured.to_class_token[1] == pytest.approx(1 / 197)
    assert measured.entropy[1] == pytest.approx(np.log(197), rel=1e-5)
    assert not measured.to_class_token[0].any()


def reference_locality(attention, grid):
    """Compute non-locality, entropy and attention to the class token by loops: [H, 3]."""
    tokens = attention.shape[-1]
    class_tokens = tokens - grid[0] * grid[1]
    patches = [(i // grid[1], i % grid[1]) for i in range(tokens - class_tokens)]
    results = []
    for image in attention.astype(np.float64):
        for head in image:
            rows = head[class_tokens:]
            nonlocality = np.mean([
                sum(rows[i, j + class_tokens] * np.hypot(a[0] - b[0], a[1] - b[1])
                    for j, b in enumerate(patches))
                for i, a in enumerate(patches)
            ])  # fmt: skip
            entropy = np.mean([-sum(p * np.log(p) for p in row if p > 0) for row in rows])
            to_class_token = rows[:, :class_tokens].sum(axis=-1).mean()
            results.append((nonlocality, entropy, to_class_token))
    return np.reshape(results, (*attention.shape[:2], 3)).mean(axis=0)


@pytest.mark.parametrize("name", ["convit_tiny", "deit_tiny"])
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_each_layer_is_measured_on_its_own_input(name, size):
    model, images = make(name, image_size=size), make_images(3, size)
    measured = locality.measure_locality(model, images)
    assert measured.examples == 3
    maps = nnx.jit(lambda model, images: model.attention_maps(images))(model, images)
    for layer, attention in enumerate(maps):
        expected = reference_locality(np.asarray(attention), model.architecture.grid)
        values = (
            measured.nonlocality[layer],
            measured.entropy[layer],
            measured.to_class_token[layer],
        )
        assert np.allclose(np.stack(values, axis=-1), expected, atol=1e-5)


def test_released_variant_measures_all_layers_on_the_patch_embeddings():
    model, images = make(), make_images()
    measured = locality.measure_locality(model, images, variant="released")
    patches = model.embed_patches(images)
    for layer, block in enumerate(model.blocks):
        attention = np.asarray(block.attention.attention_map(patches, (4, 4)))
        expected = reference_locality(attention, (4, 4))
        assert np.allclose(measured.nonlocality[layer], expected[:, 0], atol=1e-5)
    assert not np.allclose(
        measured.nonlocality, locality.measure_locality(model, images).nonlocality
    )


def test_batch_size_does_not_change_the_measurement(monkeypatch):
    model, images = make(), make_images(5)
    single = locality.measure_locality(model, images)
    monkeypatch.setattr(locality, "_MAX_IMAGES", 2)
    batched = locality.measure_locality(model, images)
    assert batched.examples == 5
    assert np.allclose(single.nonlocality, batched.nonlocality, atol=1e-6)


def test_batches_of_large_models_have_fewer_images():
    small = make().architecture
    large = make("convit_base", image_size=448, depth=1, gpsa_layers=1).architecture
    assert locality.images_at_once(small) == 32
    assert 1 <= locality.images_at_once(large) * 16 * 3137**2 * 4 / 2**20 <= 640


def test_gates_are_sigmoids_of_lambda():
    model = make()
    model.blocks[1].attention.gating[...] = jnp.array([-30.0, 0.0, 2.0, 30.0])
    gates = locality.gates(model)
    assert np.allclose(gates[0], 0.7310586)
    assert np.allclose(gates[1], [0, 0.5, 0.880797, 1], atol=1e-6)
    assert locality.gates(make("deit_tiny")).shape == (0, 3)
    assert np.array_equal(locality.gates(make(use_gating=False)), np.full((2, 4), 0.5))


def test_initial_geometry_is_that_of_the_initialisation():
    geometry = locality.head_geometry(make(num_heads=9, locality_strength=2.0))
    assert geometry.centre.shape == (2, 9, 2)
    assert {tuple(c) for c in geometry.centre[0]} == {
        (x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)
    }
    assert np.allclose(geometry.strength, 2.0)
    assert np.allclose(geometry.span, 0.5)


def test_geometry_of_trained_heads():
    """The centre is where positional attention is largest; it is NaN if α is negative."""
    model = make(image_size=112)
    attention = model.blocks[0].attention
    attention.pos_proj.kernel[...] = jnp.array(
        [[2.0, 0.0, 0, 0.3], [0, -3.0, 0, 0.2], [-0.5, -0.5, -1, 0.1]]
    )
    geometry = locality.head_geometry(model)
    assert np.allclose(geometry.centre[0, :3], [[2, 0], [0, -3], [0, 0]])
    assert np.isnan(geometry.centre[0, 3]).all()
    assert np.isnan(geometry.span[0, 3])
    assert geometry.strength[0, 3] == pytest.approx(-0.1)
    maps = attention.positional_attention((14, 14))
    query = 6 * 14 + 6
    assert np.unravel_index(maps[0, query].argmax(), (14, 14)) == (6, 8)
    assert np.unravel_index(maps[1, query].argmax(), (14, 14)) == (3, 6)


def test_invalid_input():
    model = make()
    with pytest.raises(InputError, match="no image to measure"):
        locality.measure_locality(model, make_images(0))
    with pytest.raises(InputError, match="expected propagated or released"):
        locality.measure_locality(model, make_images(), variant="relased")
    with pytest.raises(InputError, match="images have shape"):
        locality.measure_locality(model, make_images(size=(40, 32)))


def test_sum_locality_can_be_jitted():
    model = make()
    graph, state = nnx.split(model)
    sums = jax.jit(lambda s, x: locality.sum_locality(nnx.merge(graph, s), x))(state, make_images())
    assert sums["nonlocality"].shape == (3, 4)
    assert sums["examples"] == 3
