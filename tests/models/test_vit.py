from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import convit_jax
from convit_jax.errors import InputError
from convit_jax.models import layers
from tests.helpers import assert_trees_close

SMALL = {"head_dim": 8, "depth": 4, "gpsa_layers": 3, "patch_size": 4, "num_classes": 5}


def create_model(name, **options):
    """Create a model in one compilation, instead of one per parameter."""
    return nnx.jit(lambda: convit_jax.create_model(name, **options))()


def make_images(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@nnx.jit(static_argnums=1)
def run(model, method, images, **options):
    """Run `model.method(images)` as one program."""
    return getattr(model, method)(images, **options)


@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
@pytest.mark.parametrize("name", ["convit_tiny", "deit_tiny"])
def test_any_grid_square_or_not(name, size):
    options = {k: v for k, v in SMALL.items() if name == "convit_tiny" or k != "gpsa_layers"}
    model = create_model(name, image_size=size, **options)
    trace = run(model, "trace", make_images(2, *size, 3))
    logits = trace.logits
    assert logits.shape == (2, 5)
    assert logits.dtype == jnp.float32
    assert jnp.isfinite(logits).all()
    tokens = [x.shape[1] for x in trace.outputs]
    patches = size[0] * size[1] // 16
    convit_tokens = [patches] * 3 + [patches + 1]
    assert tokens == (convit_tokens if name == "convit_tiny" else [patches + 1] * 4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_patches_are_embedded_alike_by_a_product_and_a_convolution(dtype):
    """Tokens and gradients, with patches in row-major order; compared with NumPy."""
    images = make_images(2, 8, 12, 3)
    tokens, gradients = {}, {}
    for form in layers.PATCH_FORMS:
        model = create_model(
            "convit_tiny", image_size=(8, 12), dtype=dtype, patch_form=form, **SMALL
        )
        kernel, bias = model.patch_embed.kernel[...], model.patch_embed.bias[...]
        graph, state = nnx.split(model)

        def loss(state, images, graph=graph):
            embedded = nnx.merge(graph, state).embed_patches(images)
            return jnp.sum(jnp.sin(embedded.astype(jnp.float32))), embedded

        grad = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
        (of_state, of_images), tokens[form] = grad(state, images)
        gradients[form] = [of_state["patch_embed"]["kernel"][...], of_images]
    expected = np.empty((2, 6, kernel.shape[1]))
    for row in range(2):
        for column in range(3):
            patch = images[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            expected[:, 3 * row + column] = np.asarray(patch).reshape(2, -1) @ kernel + bias
    tolerance = {"float32": 1e-5, "bfloat16": 0.03}[dtype]
    for form in layers.PATCH_FORMS:
        assert tokens[form].dtype == dtype
        np.testing.assert_allclose(tokens[form], expected, rtol=tolerance, atol=tolerance)
        assert_trees_close(gradients[form], gradients["product"], rtol=tolerance, atol=tolerance)


def test_the_form_of_the_patch_embedding_follows_the_platform():
    """TPUs convolve, other platforms multiply; an explicit form is used on all of them."""

    def operations(platform, form):
        model = create_model("convit_tiny", image_size=8, patch_form=form, **SMALL)
        program = jax.jit(model.embed_patches).trace(make_images(2, 8, 8, 3))
        return "stablehlo.convolution" in program.lower(lowering_platforms=(platform,)).as_text()

    for platform in ("cpu", "tpu", "cuda"):
        assert operations(platform, "convolution")
        assert not operations(platform, "product")
        assert operations(platform, "auto") == (platform == "tpu")


def test_an_unknown_form_of_the_patch_embedding():
    with pytest.raises(InputError, match="patch_form='conv': expected one of auto, product"):
        convit_jax.create_model("convit_tiny", patch_form="conv")


def test_if_all_layers_are_gpsa_the_first_patch_is_classified():
    model = create_model("convit_tiny", image_size=16, **SMALL | {"gpsa_layers": 4})
    trace = run(model, "trace", make_images(2, 16, 16, 3))
    assert [x.shape[1] for x in trace.outputs] == [16] * 4
    np.testing.assert_allclose(trace.features, model.norm(trace.outputs[-1][:, 0]))


@pytest.mark.parametrize("gpsa_layers", [3, 4])
@pytest.mark.parametrize("seed", [None, 0])
def test_the_call_returns_the_logits_of_the_full_trace(gpsa_layers, seed):
    options = SMALL | {"gpsa_layers": gpsa_layers, "drop_path_rate": 0.5}
    model = create_model("convit_tiny", image_size=16, **options)
    key = None if seed is None else jax.random.key(seed)
    images = make_images(4, 16, 16, 3)
    trace = run(model, "trace", images, key=key)
    np.testing.assert_allclose(
        run(model, "__call__", images, key=key), trace.logits, rtol=1e-5, atol=1e-6
    )


def test_each_block_reads_the_output_of_the_one_before():
    model = create_model("convit_tiny", image_size=16, **SMALL)
    trace = run(model, "trace", make_images(1, 16, 16, 3))
    assert jnp.array_equal(trace.inputs[0], trace.embedded)
    assert jnp.array_equal(trace.inputs[1], trace.outputs[0])
    assert jnp.array_equal(trace.inputs[3][:, 1:], trace.outputs[2])


def test_dropout_is_a_function_of_the_key():
    model = create_model("convit_tiny", image_size=16, drop_path_rate=0.5, **SMALL)
    images = make_images(4, 16, 16, 3)
    assert jnp.array_equal(run(model, "__call__", images), run(model, "__call__", images))
    first, again, other = (
        run(model, "__call__", images, key=jax.random.key(seed)) for seed in (0, 0, 1)
    )
    assert jnp.array_equal(first, again)
    assert not jnp.array_equal(first, other)


def test_stochastic_depth_grows_linearly_and_keeps_the_mean():
    model = create_model("convit_tiny", image_size=16, drop_path_rate=0.3, **SMALL)
    assert [block.drop_path_rate for block in model.blocks] == pytest.approx([0, 0.1, 0.2, 0.3])
    dropped = layers.drop_path(jnp.ones((4000, 3, 2)), 0.3, jax.random.key(0))
    # A whole image is kept, scaled up, or dropped.
    images = np.asarray(dropped).reshape(4000, -1)
    assert (images == images[:, :1]).all()
    assert set(np.unique(images)) == {np.float32(0), np.float32(1 / 0.7)}
    assert images.mean() == pytest.approx(1.0, abs=0.04)
    bfloat16 = layers.drop_path(jnp.ones((4, 3, 2), jnp.bfloat16), 0.3, jax.random.key(0))
    assert bfloat16.dtype == jnp.bfloat16


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2**-8)])
def test_gelu_and_its_derivative_match_the_normal_distribution(dtype, tolerance):
    x = jnp.linspace(-6, 6, 241).astype(dtype)
    exact = np.asarray(x, np.float64)
    distribution = np.array([NormalDist().cdf(value) for value in exact])
    density = np.array([NormalDist().pdf(value) for value in exact])
    tolerances = {"rtol": tolerance, "atol": tolerance}
    np.testing.assert_allclose(layers.gelu(x).astype(float), exact * distribution, **tolerances)
    value, vjp = jax.vjp(layers.gelu, x)
    np.testing.assert_allclose(value.astype(float), exact * distribution, **tolerances)
    (slope,) = vjp(jnp.ones_like(x))
    assert slope.dtype == dtype
    np.testing.assert_allclose(slope.astype(float), distribution + exact * density, **tolerances)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("transform", [jax.jit, lambda function: function], ids=["jit", "eager"])
def test_gelu_has_the_same_bits_with_and_without_a_gradient(dtype, transform):
    """For every finite number of the type."""
    x = jax.lax.bitcast_convert_type(jnp.arange(2**16, dtype=jnp.uint16), dtype)
    x = x[jnp.isfinite(x)]

    def with_gradient(x):
        value, vjp = jax.vjp(layers.gelu, x)
        return value, *vjp(jnp.ones_like(x))

    value, (same, _) = transform(layers.gelu)(x), transform(with_gradient)(x)
    assert value.dtype == same.dtype == dtype
    np.testing.assert_array_equal(
        np.asarray(value).view(np.uint16), np.asarray(same).view(np.uint16)
    )


def test_recomputation_does_not_change_the_gradient():
    images, key = make_images(2, 16, 16, 3), jax.random.key(0)

    def gradient(remat):
        model = create_model("convit_tiny", image_size=16, drop_path_rate=0.5, remat=remat, **SMALL)
        graph, state = nnx.split(model)
        loss = jax.grad(lambda s: jnp.sum(nnx.merge(graph, s)(images, key=key) ** 2))
        return jax.jit(loss)(state)

    assert_trees_close(gradient(True), gradient(False), rtol=1e-5, atol=1e-6)


# Largest difference of an untrained model's logits between bfloat16 (8 bits of mantissa) and
# float32, relative to the largest logit.
BFLOAT16_DISTANCE = 0.02


def test_bfloat16_stays_near_float32_with_finite_gradients():
    options = SMALL | {"image_size": 32}
    exact = create_model("convit_tiny", **options)
    bfloat16 = create_model("convit_tiny", **options, dtype="bfloat16")
    images = make_images(4, 32, 32, 3)
    expected, logits = run(exact, "__call__", images), run(bfloat16, "__call__", images)
    assert logits.dtype == jnp.float32
    assert jnp.abs(logits - expected).max() < BFLOAT16_DISTANCE * jnp.abs(expected).max()
    assert not jnp.array_equal(logits, expected)

    graph, state = nnx.split(bfloat16)
    gradients = jax.jit(jax.grad(lambda s: nnx.merge(graph, s)(images)[:, 0].sum()))(state)
    for leaf in jax.tree.leaves(gradients):
        assert leaf.dtype == jnp.float32
        assert jnp.isfinite(leaf).all()


def test_bfloat16_keeps_softmax_and_statistics_in_float32():
    model = create_model("convit_tiny", image_size=16, dtype="bfloat16", **SMALL)
    graph, state = nnx.split(model)
    program = jax.make_jaxpr(lambda s, x: nnx.merge(graph, s)(x))(state, make_images(1, 16, 16, 3))
    reductions = [
        (eqn.primitive.name, eqn.invars[0].aval.dtype)
        for eqn in _equations(program.jaxpr)
        if eqn.primitive.name in ("exp", "rsqrt", "reduce_sum", "reduce_max")
    ]
    assert {name for name, _ in reductions} >= {"exp", "rsqrt", "reduce_sum", "reduce_max"}
    assert {dtype for _, dtype in reductions} == {jnp.dtype("float32")}


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _equations(inner)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (jnp.zeros((2, 3, 16, 16)), r"channels first \(NCHW\).*transpose them by \(0, 2, 3, 1\)"),
        (jnp.zeros((2, 32, 32, 3)), r"shape \(2, 32, 32, 3\): expected.*\[batch, 16, 16, 3\]"),
        (jnp.zeros((16, 16, 3)), r"expected float images \[batch, 16, 16, 3\]"),
        (jnp.zeros((2, 16, 16, 3), jnp.uint8), "images are uint8.*normalised"),
    ],
)
def test_images_of_another_shape_or_type_are_refused(images, message):
    model = create_model("convit_tiny", image_size=16, **SMALL)
    with pytest.raises(InputError, match=message):
        model(images)


def test_layer_scale_multiplies_the_channels_of_both_branches():
    """x + diag(λ) f(x) (Touvron et al. 2021, CaiT, Eq. 4)."""
    model = create_model("convit_tiny", image_size=16, layer_scale=0.25, **SMALL)
    block, grid = model.blocks[0], model.architecture.grid
    assert set(np.asarray(block.layer_scale1.scale[...])) == {0.25}
    rng = np.random.default_rng(0)
    block.layer_scale1.scale[...], block.layer_scale2.scale[...] = scales = rng.normal(size=(2, 32))
    x = jnp.asarray(rng.normal(size=(2, 16, 32)), jnp.float32)
    middle = x + scales[0] * block.attention(block.norm1(x), grid)
    expected = middle + scales[1] * block.mlp(block.norm2(middle))
    np.testing.assert_allclose(block(x, grid), expected, rtol=1e-5, atol=1e-5)
