import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convit_jax import kernels
from convit_jax.kernels import choice
from convit_jax.kernels.attention import one_product, two_products

FORMS = pytest.mark.parametrize("form", [two_products, one_product])


def make_inputs(tokens=7, heads=3, channels=5, batch=2, seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    q, k, v = (
        jnp.asarray(rng.normal(size=(batch, tokens, heads, channels)), dtype) for _ in range(3)
    )
    positional = jax.nn.softmax(jnp.asarray(rng.normal(size=(heads, tokens, tokens)), jnp.float32))
    gate = jnp.asarray(rng.uniform(size=heads), jnp.float32)
    return q, k, v, positional, gate


def expected_output(q, k, v, positional, gate):
    """Return the definition in float64."""
    q, k, v, positional, gate = (np.asarray(x, np.float64) for x in (q, k, v, positional, gate))
    scores = np.einsum("bnhd,bmhd->bhnm", q, k) / np.sqrt(q.shape[-1])
    content = np.exp(scores - scores.max(-1, keepdims=True))
    content /= content.sum(-1, keepdims=True)
    gate = gate[:, None, None]
    return np.einsum("bhnm,bmhd->bnhd", (1 - gate) * content + gate * positional, v)


@FORMS
@pytest.mark.parametrize("tokens", [1, 7, 49])
def test_gated_attention_matches_its_definition(tokens, form):
    inputs = make_inputs(tokens)
    np.testing.assert_allclose(form(*inputs), expected_output(*inputs), rtol=1e-5, atol=1e-6)


@FORMS
def test_gate_zero_is_plain_attention(form):
    q, k, v, positional, gate = make_inputs()
    plain = form(q, k, v)
    np.testing.assert_allclose(
        form(q, k, v, positional, jnp.zeros_like(gate)), plain, rtol=1e-6, atol=1e-7
    )
    content = kernels.attention_map(q, k)
    np.testing.assert_allclose(jnp.einsum("bhnm,bmhd->bnhd", content, v), plain, atol=1e-6)


@FORMS
def test_large_scores_do_not_overflow(form):
    q, k, v, positional, gate = make_inputs()
    inputs = (q * 1e3, k * 1e3, v, positional, gate)
    np.testing.assert_allclose(form(*inputs), expected_output(*inputs), rtol=1e-4, atol=1e-5)


@FORMS
def test_bfloat16_in_bfloat16_out(form):
    inputs = make_inputs(dtype=jnp.bfloat16)
    output = form(*inputs)
    assert output.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        output.astype(jnp.float32), expected_output(*inputs), rtol=0.02, atol=0.02
    )


@FORMS
@pytest.mark.parametrize("argument", range(5))
def test_gradients_match_finite_differences(argument, form):
    inputs = list(make_inputs())
    rng = np.random.default_rng(1)
    weights = rng.normal(size=inputs[0].shape)

    def loss(*inputs):
        return jnp.sum(form(*inputs) * weights)

    gradient = np.asarray(jax.grad(loss, argnums=argument)(*inputs), np.float64)
    direction = rng.normal(size=inputs[argument].shape)
    shifted = [[np.asarray(x, np.float64) for x in inputs] for _ in range(2)]
    shifted[0][argument] += 1e-5 * direction
    shifted[1][argument] -= 1e-5 * direction
    slope = np.sum((expected_output(*shifted[0]) - expected_output(*shifted[1])) * weights) / 2e-5
    assert np.sum(gradient * direction) == pytest.approx(slope, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(("platform", "products"), [("cpu", 3), ("rocm", 2), ("tpu", 2)])
def test_the_xla_formulation_depends_on_the_platform(monkeypatch, platform, products):
    """On a machine with several devices and no mesh, where the fused kernel is not used."""
    monkeypatch.setattr(choice._Hardware, "of", lambda device: choice._Hardware(platform))
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    q, k, v, positional, gate = make_inputs()
    parts = [x.reshape(*x.shape[:2], -1) for x in (q, k, v)]
    attend = kernels.attention_for()
    program = str(jax.make_jaxpr(lambda *x: attend(x, len(gate), positional, gate))(*parts))
    assert program.count("dot_general") == products


def test_the_default_device_may_be_a_platforms_name():
    with jax.default_device("cpu"):
        assert kernels.DEFAULT_ATTENTION._hardware() == choice._Hardware("cpu")
