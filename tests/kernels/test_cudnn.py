"""cuDNN attention, without a GPU: when it is chosen, and the arithmetic around it."""

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
from convit_jax.models.block import attention_layer
from tests.helpers import assert_trees_close
from tests.kernels.test_attention import expected_output, make_inputs

HOPPER, AMPERE, VOLTA = (9, 0), (8, 0), (7, 0)


@pytest.fixture
def attention_on_gpu(monkeypatch):
    """A function of a form that returns attention for a mesh of this machine posing as a GPU."""

    def make(form="auto", capability=HOPPER):
        hardware = choice._Hardware("cuda", capability)
        monkeypatch.setattr(choice._Hardware, "of", lambda device: hardware)
        # JAX queries the GPU itself, and there is none.
        monkeypatch.setattr(jax_cudnn, "check_cudnn_version", lambda: 91900)
        monkeypatch.setattr(
            jax_cudnn,
            "check_compute_capability",
            lambda required: capability >= tuple(map(int, required.split("."))),
        )
        monkeypatch.setattr(jax_cudnn, "is_cuda_compute_capability_equal", lambda required: False)
        return kernels.attention_for(Mesh(np.array(jax.devices()[:1]), ("data",)), form)

    return make


@pytest.fixture
def cudnn_by_definition(monkeypatch):
    """Replace cuDNN's operation by its definition; returns the list of its calls' token counts."""
    num_tokens = []

    def definition(q, k, v, *, implementation, query_seq_lengths, key_value_seq_lengths):
        assert implementation == "cudnn"
        num_tokens.append(q.shape[1])
        scores = jnp.einsum("bnhd,bmhd->bhnm", q, k) / math.sqrt(q.shape[-1])
        if key_value_seq_lengths is not None:
            assert (query_seq_lengths == key_value_seq_lengths).all()
            is_token = jnp.arange(k.shape[1]) < key_value_seq_lengths[0]
            scores = jnp.where(is_token, scores, -jnp.inf)
        return jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(scores), v)

    monkeypatch.setattr(jax.nn, "dot_product_attention", definition)
    return num_tokens


@pytest.mark.parametrize("tokens", [6, 7])
def test_the_arithmetic_around_cudnn_matches_the_definition(tokens, cudnn_by_definition):
    with jax.enable_x64(True):
        inputs = [jnp.float64(x) for x in make_inputs(tokens)]
        out = cudnn.cudnn_attention(*inputs)
        np.testing.assert_allclose(out, expected_output(*inputs), atol=1e-6)
        plain = cudnn.cudnn_attention(*inputs[:3])
        no_gate = expected_output(*inputs[:4], np.zeros(3))
        np.testing.assert_allclose(plain, no_gate, atol=1e-12)
    assert cudnn_by_definition == [tokens, tokens]


@pytest.mark.parametrize("tokens", [6, 7])
def test_all_five_gradients_match_the_definition(tokens, cudnn_by_definition):
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
        gradients, expected = (
            jax.grad(functools.partial(total, form), range(5))(*inputs)
            for form in (cudnn.cudnn_attention, definition)
        )
    assert_trees_close(gradients, expected, atol=1e-5)
    # JAX has no gradient of an odd number of tokens.
    assert cudnn_by_definition == [tokens + tokens % 2]


@pytest.mark.parametrize("image_size", [224, 384])
@pytest.mark.parametrize("model", models.list_models())
def test_cudnn_supports_every_model_except_for_576_patches(model, image_size):
    """With 576 patches (image size 384) cuDNN's gradients are NaN."""
    a = models.architecture(model, image_size=image_size, dtype="bfloat16")
    patches = math.prod(a.grid)
    unsupported = functools.partial(
        cudnn.unsupported_reason, "cuda", HOPPER, jnp.bfloat16, a.head_dim
    )
    assert unsupported(patches + 1) is None
    assert (unsupported(patches) is not None) == (image_size == 384)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (("cpu", (0, 0), jnp.bfloat16, 48, 196), "compiled for cpu"),
        (("rocm", (0, 0), jnp.bfloat16, 48, 196), "compiled for rocm"),
        (("cuda", VOLTA, jnp.bfloat16, 48, 196), "8.0 or newer, and this one has 7.0"),
        (("cuda", HOPPER, jnp.float32, 48, 196), "config.model.dtype is float32"),
        (("cuda", HOPPER, jnp.bfloat16, 12, 196), "multiple of 8 channels"),
        (("cuda", HOPPER, jnp.bfloat16, 136, 196), "at most 128"),
        (("cuda", HOPPER, jnp.bfloat16, 48, 64), "gradients are NaN for 64 tokens"),
        (("cuda", HOPPER, jnp.bfloat16, 48, 576), "gradients are NaN for 576 tokens"),
        (("cuda", AMPERE, jnp.bfloat16, 48, 576), None),
        (("cuda", HOPPER, jnp.float16, 128, 128), None),
    ],
)
def test_unsupported_inputs_have_a_reason(case, reason):
    unsupported = cudnn.unsupported_reason(*case)
    assert unsupported is None if reason is None else reason in unsupported


def abstract_layer(architecture, attend, gpsa=True):
    """A layer of shapes only, without arrays."""
    return nnx.eval_shape(
        lambda: attention_layer(architecture, attend, gpsa=gpsa, rngs=nnx.Rngs(0))
    )


def lowered_for_cuda(layer, x, grid, num_outputs=None):
    """Return the StableHLO of a layer and of its gradient."""
    graph, params = nnx.split(layer)

    def forward(params, x):
        return nnx.merge(graph, params)(x, grid, num_outputs=num_outputs)

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
    one_query, _ = lowered_for_cuda(layer, x, a.grid, num_outputs=1)
    assert "__cudnn$fmhaSoftmax(" in forward
    assert "Backward" not in forward
    assert "__cudnn$fmhaSoftmaxBackward(" in gradient
    assert "__cudnn" not in one_query
    # Queries, keys and values are separate products: slices of a joint one would be copied.
    assert f"{a.width}x{2 * a.width}xbf16" not in forward
    layer = abstract_layer(a, attention_on_gpu("xla"), gpsa)
    assert "__cudnn" not in "".join(lowered_for_cuda(layer, x, a.grid))


def test_gpus_without_measurements_use_cudnn_only_on_request(attention_on_gpu):
    a = models.architecture("convit_tiny", image_size=224, dtype="bfloat16")
    x = jax.ShapeDtypeStruct((2, 196, a.width), jnp.bfloat16)
    layer = abstract_layer(a, attention_on_gpu("auto", AMPERE))
    assert "__cudnn" not in "".join(lowered_for_cuda(layer, x, a.grid))
    layer = abstract_layer(a, attention_on_gpu("cudnn", AMPERE))
    assert "__cudnn$fmha" in "".join(lowered_for_cuda(layer, x, a.grid))


def test_an_unsupported_form_is_refused_with_the_supported_ones(attention_on_gpu):
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    with pytest.raises(InputError, match=r"compiled for cpu; expected auto or xla$"):
        kernels.attention_for(mesh, "cudnn").check("bfloat16", 48, 196)
    for form in ("auto", "xla", "pallas"):
        kernels.attention_for(mesh, form).check("float32", 12, 64)
    qkv = jnp.zeros((1, 4, 3 * 16))
    with pytest.raises(InputError, match="dtype is float32"):
        attention_on_gpu("cudnn")((qkv,), 2)


def test_a_linear_layer_applied_in_parts_gives_the_same_output():
    layer = models.layers.Linear(6, 12, rngs=nnx.Rngs(0), bias_init=nnx.initializers.normal())
    x = jax.random.normal(jax.random.key(0), (2, 5, 6))
    for num_parts in (2, 3):
        parts = layer.apply_in_parts(x, num_parts)
        assert [part.shape for part in parts] == [(2, 5, 12 // num_parts)] * num_parts
        np.testing.assert_allclose(jnp.concatenate(parts, axis=-1), layer(x), atol=1e-6)
