"""Models called eagerly, as in a notebook, and the same calls inside of transformations."""

import gc
import importlib
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import convit_jax
from convit_jax.errors import InputError
from convit_jax.kernels import attention_for
from convit_jax.kernels.attention import one_product
from convit_jax.models import eager

SMALL = {"num_heads": 4, "head_dim": 8, "depth": 2, "gpsa_layers": 1, "patch_size": 4,
         "image_size": 8, "num_classes": 5}  # fmt: skip


@pytest.fixture
def calls():
    """A list to which every call of the fixture model's attention, traced or not, is added."""
    return []


@pytest.fixture
def create(calls):
    """A function that creates models which share a recording attention."""

    def recording(*args):
        calls.append(args)
        return one_product(*args)

    attend = attention_for(form=recording)

    def make(seed=0, **overrides):
        model = nnx.jit(lambda: convit_jax.create_model("convit_tiny", **SMALL | overrides,
                                                        seed=seed))()  # fmt: skip
        return model.with_attention(attend)

    return make


def make_images(batch_size=2, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(batch_size, 8, 8, 3)), jnp.float32)


def operation_by_operation(model, method, images, **options):
    return getattr(type(model), method).__wrapped__(model, images, **options)


def test_a_program_is_compiled_once_for_each_architecture_shape_and_type(create, calls):
    """And called for other weights: the attention of both layers runs only while tracing."""
    first, second = create(seed=0), create(seed=1)
    logits = first(make_images())
    assert len(calls) == 2
    for model, images in ((first, make_images(seed=1)), (second, make_images())):
        assert not np.array_equal(model(images), logits)
    assert np.array_equal(first(make_images()), logits)
    assert len(calls) == 2
    first(make_images(batch_size=3))
    assert len(calls) == 4
    first(make_images().astype(jnp.bfloat16))
    assert len(calls) == 6
    create(dtype="bfloat16")(make_images())
    assert len(calls) == 8
    first.with_attention(attention_for(form=lambda *args: one_product(*args)))(make_images())
    assert len(calls) == 8  # computed by the other attention


@pytest.mark.parametrize("method", ["__call__", "trace", "attention_maps"])
def test_the_compiled_methods_compute_what_their_operations_do(create, calls, method):
    model, images = create(), make_images()
    results = [getattr(model, method)(images) for _ in range(2)]
    assert len(calls) == 2
    expected = operation_by_operation(model, method, images)
    assert len(calls) == 4
    for result in results:
        for ours, reference in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(ours, reference, rtol=1e-4, atol=1e-5)


def test_weights_are_arguments_and_are_not_copied(create, calls):
    model, images = create(), make_images()
    before = model(images)
    arrays = jax.tree.leaves(nnx.state(model))
    model(images)
    assert all(
        array is same for array, same in zip(arrays, jax.tree.leaves(nnx.state(model)), strict=True)
    )
    model.head.bias[...] += 1.0
    np.testing.assert_allclose(model(images), before + 1.0, rtol=1e-5)
    assert len(calls) == 2


def test_training_mode_draws_from_the_key(create, calls):
    model, images = create(drop_rate=0.2, drop_path_rate=0.5), make_images(8)
    logits = [model(images, key=jax.random.key(seed)) for seed in (0, 0, 1)]
    assert len(calls) == 2
    assert np.array_equal(logits[0], logits[1])
    assert not np.allclose(logits[0], logits[2])
    expected = operation_by_operation(model, "__call__", images, key=jax.random.key(1))
    np.testing.assert_allclose(logits[2], expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(model(images), logits[0])


def test_inside_of_transformations_it_is_a_part_of_their_program(create):
    model, images = create(), make_images()
    logits = model(images)
    assert "nnx.jit" not in str(jax.make_jaxpr(lambda x: model(x))(images))
    names = {equation.primitive.name for equation in jax.make_jaxpr(model)(images).eqns}
    assert "dot_general" in names  # on the top level, not in a nested program
    exported = jax.export.export(jax.jit(lambda x: model(x)))(images)
    for transformed in (
        jax.jit(model)(images),
        nnx.jit(lambda model, x: model(x))(model, images),
        jax.vmap(lambda x: model(x[None])[0])(images),
        nnx.vmap(lambda model, x: model(x[None])[0], in_axes=(None, 0))(model, images),
        exported.call(images),
    ):
        np.testing.assert_allclose(transformed, logits, rtol=1e-4, atol=1e-5)
    assert nnx.eval_shape(lambda model: model(images), model).shape == (2, 5)

    def loss(model, x):
        return (model(x) ** 2).sum()

    expected = jax.jit(jax.grad(lambda x: loss(model, x)))(images)
    np.testing.assert_allclose(
        jax.grad(lambda x: loss(model, x))(images), expected, rtol=1e-3, atol=1e-5
    )
    gradients = nnx.grad(loss)(model, images)
    np.testing.assert_allclose(
        gradients["head"]["bias"][...], 2 * np.sum(logits, axis=0), rtol=1e-4, atol=1e-5
    )


def test_imported_inside_of_a_trace_it_still_knows_eager_calls():
    outside = eager._EAGER
    try:
        jax.eval_shape(lambda: importlib.reload(eager) and jnp.zeros(()))
        assert outside == eager._EAGER
    finally:
        importlib.reload(eager)


class Recording(nnx.Module):
    """A layer that sows its output."""

    def __init__(self, layer):
        self.layer = layer

    def __call__(self, x):
        out = self.layer(x)
        self.sow(nnx.Intermediate, "features", out)
        return out


def test_captured_intermediates_come_out(create, calls):
    model, images = create(), make_images()
    trace = model.trace(images)
    model.norm = Recording(model.norm)
    calls.clear()
    for _ in range(2):
        logits, intermediates = nnx.capture(model, nnx.Intermediate)(images)
        (features,) = intermediates["norm"]["features"].get_value()
        np.testing.assert_allclose(features, trace.features, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(logits, trace.logits, rtol=1e-4, atol=1e-5)
    assert len(calls) == 2  # compiled, once


def test_layers_may_share_their_parameters(create):
    model, images = create(), make_images()
    model.blocks[1].mlp = model.blocks[0].mlp
    expected = jax.jit(lambda x: model(x))(images)
    np.testing.assert_allclose(model(images), expected, rtol=1e-4, atol=1e-5)


def test_the_programs_do_not_keep_models_alive(create):
    model = create()
    model(make_images())
    reference, array = weakref.ref(model), weakref.ref(model.head.kernel[...])
    del model
    gc.collect()
    assert reference() is None
    assert array() is None


def test_wrong_images_are_input_errors_in_eager_calls(create):
    model = create()
    with pytest.raises(InputError, match="expected float images"):
        model(jnp.zeros((1, 9, 8, 3)))
    with pytest.raises(InputError, match="images are uint8"):
        model(np.zeros((1, 8, 8, 3), np.uint8))
