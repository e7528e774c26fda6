"""cuDNN's form of attention, without a GPU: when it is chosen, and the arithmetic around it."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax._src.cudnn import fused_attention_stablehlo as jax_cudnn
from jax.sharding import Mesh

from convit_jax import kernels, models
from convit_jax.errors import InputError
from convit_jax.kernels import choice, cudnn
from convit_jax.models.vit import attention_layer
from tests.kernels.test_attention import expected_output, make_inputs

HOPPER, AMPERE, VOLTA = (9, 0), (8, 0), (7, 0)


@pytest.fixture
def attention_on_gpu(monkeypatch):
    """A function of a form: the attention of a mesh of this machine, taken for a GPU."""

    def make(form="auto", capability=HOPPER):
        hardware = choice._Hardware("cuda", capability)
        monkeypatch.setattr(choice._Hardware, "of", lambda device: hardware)
        # JAX asks the GPU itself, of which there is none.
        monkeypatch.setattr(jax_cudnn, "check_cudnn_version", lambda: 91900)
        monkeypatch.setattr(
            jax_cudnn,
            "check_compute_capability",
            lambda wanted: capability >= tuple(map(int, wanted.split("."))),
        )
        monkeypatch.setattr(jax_cudnn, "is_cuda_compute_capability_equal", lambda wanted: False)
        return kernels.attention_for(Mesh(np.array(jax.devices()[:1]), ("data",)), form)

    return make


@pytest.fixture
def defined(monkeypatch):
    """cuDNN's operation is replaced by its definition; the numbers of tokens it saw are kept."""
    seen = []

    def definition(q, k, v, *, implementation, query_seq_lengths, key_value_seq_lengths):
        assert implementation == "cudnn"
        seen.append(q.shape[1])
        scores = jnp.einsum("bnhd,bmhd->bhnm", q, k) / math.sqrt(q.shape[-1])
        if key_value_seq_lengths is not None:
            assert (query_seq_lengths == key_value_seq_lengths).all()
            counts = jnp.arange(k.shape[1]) < key_value_seq_lengths[0]
            scores = jnp.where(counts, scores, -jnp.inf)
        return jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(scores), v)

    monkeypatch.setattr(jax.nn, "dot_product_attention", definition)
    return seen


@pytest.mark.parametrize("tokens", [6, 7])
def test_what_is_around_it_is_the_definition(tokens, defined):
    with jax.enable_x64(True):
        inputs = [jnp.float64(x) for x in make_inputs(tokens)]
        out = cudnn.cudnn_attention(*inputs)
        np.testing.assert_allclose(out, expected_output(*inputs), atol=1e-6)
        plain = cudnn.cudnn_attention(*inputs[:3])
        no_gate = expected_output(*inputs[:4], np.zeros(3))
        np.testing.assert_allclose(plain, no_gate, atol=1e-12)
    assert defined == [tokens, tokens]


@pytest.mark.parametrize("tokens", [6, 7])
def test_all_five_gradients_are_the_definitions(tokens, defined):
    def total(form, *inputs):
        return (form(*inputs) * weights).sum()

    def definition(q, k, v, positional, gate):
        scores = jnp.einsum("bnhd,bmhd->bhnm", q, k) / math.sqrt(q.shape[-1])
        gate = gate[:, None, None]
        mixed = (1 - gate) * jax.nn.softmax(scores) + gate * positional
        return jnp.einsum("bhnm,bmhd->bnhd", mixed, v)

    with jax.enable_x64(True):
        inputs = [jnp.float64(x) for x in make_inputs(tokens)]
        weights = jax.random.normal(jax.random.key(1), inputs[0].shape)
        found, expected = (
            jax.grad(functools.partial(total, form), range(5))(*inputs)
            for form in (cudnn.cudnn_attention, definition)
        )
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    # JAX has no gradient of an odd number of tokens.
    assert defined == [tokens + tokens % 2]


@pytest.mark.parametrize("image_size", [224, 384])
@pytest.mark.parametrize("model", models.list_models())
def test_the_choice_for_every_model(model, image_size):
    """All go to cuDNN, but for 576 patches: their gradients are not numbers there."""
    a = models.architecture(model, image_size=image_size, dtype="bfloat16")
    patches = math.prod(a.grid)
    refused = functools.partial(cudnn.refusal, "cuda", HOPPER, jnp.bfloat16, a.head_dim)
    assert refused(patches + 1) is None
    assert (refused(patches) is not None) == (image_size == 384)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (("cpu", (0, 0), jnp.bfloat16, 48, 196), "compiled for cpu"),
        (("rocm", (0, 0), jnp.bfloat16, 48, 196), "compiled for rocm"),
        (("cuda", VOLTA, jnp.bfloat16, 48, 196), "8.0 or newer, and this one has 7.0"),
        (("cuda", HOPPER, jnp.float32, 48, 196), "config.model.dtype is float32"),
        (("cuda", HOPPER, jnp.bfloat16, 12, 196), "multiple of 8 channels"),
        (("cuda", HOPPER, jnp.bfloat16, 136, 196), "at most 128"),
        (("cuda", HOPPER, jnp.bfloat16, 48, 64), "not numbers for 64 tokens"),
        (("cuda", HOPPER, jnp.bfloat16, 48, 576), "not numbers for 576 tokens"),
        (("cuda", AMPERE, jnp.bfloat16, 48, 576), None),
        (("cuda", HOPPER, jnp.float16, 128, 128), None),
    ],
)
def test_what_it_cannot_do_is_said(case, words):
    why = cudnn.refusal(*case)
    assert why is None if words is None else words in why


def abstract_layer(architecture, attend, gpsa=True):
    """A layer without arrays, of shapes alone."""
    return nnx.eval_shape(
        lambda: attention_layer(architecture, attend, gpsa=gpsa, rngs=nnx.Rngs(0))
    )


def lowered_for_cuda(layer, x, grid, outputs=None):
    """The StableHLO of a layer and of its gradient."""
    graph, params = nnx.split(layer)

    def forward(params, x):
        return nnx.merge(graph, params)(x, grid, outputs=outputs)

    def total(params, x):
        return forward(params, x).astype(jnp.float32).sum()

    return [
        jax.jit(function).trace(params, x).lower(lowering_platforms=("cuda",)).as_text()
        for function in (forward, jax.grad(total, (0, 1)))
    ]


@pytest.mark.parametrize("gpsa", [True, False])
def test_a_layer_lowers_for_cuda_with_cudnns_operations(gpsa, attention_on_gpu):
    a = models.architecture("convit_small", image_size=224, dtype="bfloat16")
    layer = abstract_layer(a, attention_on_gpu(), gpsa)
    tokens = math.prod(a.grid) + (not gpsa)
    x = jax.ShapeDtypeStruct((2, tokens, a.width), jnp.bfloat16)
    forward, gradient = lowered_for_cuda(layer, x, a.grid)
    one_query, _ = lowered_for_cuda(layer, x, a.grid, outputs=1)
    assert "__cudnn$fmhaSoftmax(" in forward
    assert "Backward" not in forward
    assert "__cudnn$fmhaSoftmaxBackward(" in gradient
    assert "__cudnn" not in one_query
    # Queries, keys and values are products of their own: slices of a joint one would be copied.
    assert f"{a.width}x{2 * a.width}xbf16" not in forward
    layer = abstract_layer(a, attention_on_gpu("xla"), gpsa)
    assert "__cudnn" not in "".join(lowered_for_cuda(layer, x, a.grid))


def test_what_was_not_measured_must_be_asked_for(attention_on_gpu):
    a = models.architecture("convit_tiny", image_size=224, dtype="bfloat16")
    x = jax.ShapeDtypeStruct((2, 196, a.width), jnp.bfloat16)
    layer = abstract_layer(a, attention_on_gpu("auto", AMPERE))
    assert "__cudnn" not in "".join(lowered_for_cuda(layer, x, a.grid))
    layer = abstract_layer(a, attention_on_gpu("cudnn", AMPERE))
    assert "__cudnn$fmha" in "".join(lowered_for_cuda(layer, x, a.grid))


def test_asking_for_what_cannot_be_had_is_refused_with_what_can(attention_on_gpu):
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    with pytest.raises(InputError, match=r"compiled for cpu; expected auto or xla$"):
        kernels.attention_for(mesh, "cudnn").check("bfloat16", 48, 196)
    for form in ("auto", "xla", "pallas"):
        kernels.attention_for(mesh, form).check("float32", 12, 64)
    qkv = jnp.zeros((1, 4, 3 * 16))
    with pytest.raises(InputError, match="dtype is float32"):
        attention_on_gpu("cudnn")((qkv,), 2)


def test_parts_of_a_projection_are_the_projections():
    layer = models.layers.Linear(6, 12, rngs=nnx.Rngs(0), bias_init=nnx.initializers.normal())
    x = jax.random.normal(jax.random.key(0), (2, 5, 6))
    for count in (2, 3):
        parts = layer.parts(x, count)
        assert [part.shape for part in parts] == [(2, 5, 12 // count)] * count
        np.testing.assert_allclose(jnp.concatenate(parts, axis=-1), layer(x), atol=1e-6)
