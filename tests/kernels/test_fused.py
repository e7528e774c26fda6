"""The fused kernel, interpreted on the CPU, against its definition in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh

from convit_jax import kernels
from convit_jax.kernels import blocks as cutting
from convit_jax.kernels.fused import Target, fused_attention

AMPLE, MIB = 2**27, 2**20


def make_inputs(batch, tokens, heads, channels, *, size=1.0, seed=0, dtype=jnp.float32):
    """Flat queries, keys and values, a positional map, gates, and the result's gradient."""
    rng = np.random.default_rng(seed)
    shape = (batch, tokens, heads * channels)
    q, k, v, d_out = (jnp.asarray(rng.normal(size=shape), dtype) for _ in range(4))
    positional = jax.nn.softmax(jnp.asarray(rng.normal(size=(heads, tokens, tokens)), jnp.float32))
    gate = jnp.asarray(rng.uniform(size=heads), jnp.float32)
    return (q * size, k * size, v, positional, gate), d_out


def expected(inputs, d_out):
    """The definition and its derivatives, written out in float64."""
    q, k, v, positional, gate = (np.asarray(x, np.float64) for x in inputs)
    heads = len(gate)

    def split(x):
        x = np.asarray(x, np.float64)
        return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)

    def join(x):
        return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)

    q, k, v, d_out = (split(x) for x in (q, k, v, d_out))
    scale = q.shape[-1] ** -0.5
    scores = q @ k.swapaxes(-1, -2) * scale
    content = np.exp(scores - scores.max(-1, keepdims=True))
    content /= content.sum(-1, keepdims=True)
    share = gate[:, None, None]
    mixture = (1 - share) * content + share * positional
    d_mixture = d_out @ v.swapaxes(-1, -2)
    d_content = (1 - share) * d_mixture
    d_scores = content * (d_content - (d_content * content).sum(-1, keepdims=True)) * scale
    return (
        join(mixture @ v),
        join(d_scores @ k),
        join(d_scores.swapaxes(-1, -2) @ q),
        join(mixture.swapaxes(-1, -2) @ d_out),
        (share * d_mixture).sum(0),
        (d_mixture * (positional - content)).sum((0, 2, 3)),
    )


def run(target, inputs, d_out, *, parts=1, gated=True):
    """The kernel's result and gradients, of q, k and v together in so many arrays."""
    q, k, v, positional, gate = inputs
    heads = len(gate)

    def apply(q, k, v, positional, gate):
        joined = {
            1: lambda: (jnp.concatenate([q, k, v], -1),),
            2: lambda: (jnp.concatenate([q, k], -1), v),
            3: lambda: (q, k, v),
        }[parts]()
        extra = (positional, gate) if gated else (None, None)
        return fused_attention(target, heads, joined, *extra)

    @jax.jit
    def both(inputs, d_out):
        out, pull = jax.vjp(apply, *inputs)
        return out, *pull(d_out)

    return both((q, k, v, positional, gate), d_out)


def assert_right(found, inputs, d_out, tolerance=1e-4):
    wanted = expected(inputs, d_out)
    for name, a, b in zip(("out", "dq", "dk", "dv", "dT", "dg"), found, wanted, strict=True):
        size = max(np.abs(b).max(), 1.0)
        np.testing.assert_allclose(
            np.asarray(a, np.float64) / size, b / size, atol=tolerance, err_msg=name
        )


# A failure is told as found: making it smaller would compile for minutes.
@settings(max_examples=4, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 30),
    heads=st.integers(1, 3),
    channels=st.sampled_from([8, 16, 24]),
    parts=st.integers(1, 3),
    extreme=st.sampled_from([None, 0.0, 1.0]),
    size=st.sampled_from([1.0, 30.0]),
    seed=st.integers(0, 99),
)
def test_the_kernel_is_its_definition(batch, tokens, heads, channels, parts, extreme, size, seed):
    """Scores of up to thousands, gates quite shut and quite open."""
    inputs, d_out = make_inputs(batch, tokens, heads, channels, size=size, seed=seed)
    if extreme is not None:
        inputs = (*inputs[:4], inputs[4].at[0].set(extreme))
    found = run(Target(AMPLE, interpret=True), inputs, d_out, parts=parts)
    assert_right(found, inputs, d_out, tolerance=1e-4 * size)


def test_with_more_tokens_than_lanes():
    inputs, d_out = make_inputs(1, 150, 1, 8)
    assert_right(run(Target(AMPLE, interpret=True), inputs, d_out), inputs, d_out)


def test_plain_attention_is_that_of_a_shut_gate():
    inputs, d_out = make_inputs(2, 9, 2, 8)
    inputs = (*inputs[:4], jnp.zeros(2))
    found = run(Target(AMPLE, interpret=True), inputs, d_out, gated=False)
    wanted = expected(inputs, d_out)
    for a, b in zip(found[:4], wanted[:4], strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("gated", [True, False])
def test_heads_in_groups_and_queries_in_tiles(gated, monkeypatch):
    """What large images take: one group of heads after another, loops, several tiles."""
    monkeypatch.setattr(cutting, "_WRITTEN_OUT", 0)
    monkeypatch.setattr(cutting, "_ONE_TILE", 0)
    target = Target(11 * MIB // 2, interpret=True)
    blocks = target.blocks(1, 150, 2, 8, jnp.float32)
    assert (blocks.groups, len(blocks.tiles), blocks.written_out) == (2, 2, False)
    inputs, d_out = make_inputs(1, 150, 2, 8)
    found = run(target, inputs, d_out, parts=2, gated=gated)
    if gated:
        assert_right(found, inputs, d_out)
    else:
        wanted = expected((*inputs[:4], jnp.zeros(2)), d_out)
        for a, b in zip(found[:4], wanted[:4], strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)


def test_bfloat16():
    inputs, d_out = make_inputs(2, 20, 2, 16, dtype=jnp.bfloat16)
    found = run(Target(AMPLE, interpret=True), inputs, d_out, parts=2)
    assert [x.dtype for x in found[:4]] == [jnp.bfloat16] * 4
    assert_right(found, inputs, d_out, tolerance=0.03)


@pytest.mark.parametrize(
    ("heads", "channels"), [(4, 48), (9, 48), (16, 48), (4, 64), (9, 64), (16, 64), (6, 64)]
)
@pytest.mark.parametrize("tokens", [1, 7, 196, 197, 576, 784])
def test_every_model_of_the_paper_fits(heads, channels, tokens):
    """On a chip with 128 MiB of fast memory; up to 197 tokens, in one group, on one with 64."""
    blocks = cutting.fitting_blocks(64, tokens, heads, channels, jnp.bfloat16, 128 * MIB)
    assert blocks.heads == blocks.group * blocks.groups
    assert blocks.lanes % blocks.tile == 0
    if tokens <= 197:
        blocks = cutting.fitting_blocks(64, tokens, heads, channels, jnp.bfloat16, 64 * MIB)
        assert blocks.groups == 1


def test_what_does_not_fit_is_left_to_xla():
    assert cutting.fitting_blocks(8, 4000, 4, 64, jnp.bfloat16, 16 * MIB) is None
    assert cutting.fitting_blocks(8, 196, 4, 5, jnp.float32, AMPLE) is None
    assert cutting.fitting_blocks(8, 196, 4, 8, jnp.bfloat16, AMPLE) is None


@pytest.fixture
def one_device():
    return Mesh(np.array(jax.devices()[:1]), ("data",))


def uses_kernel(function, *arguments):
    return "attention_forward" in str(jax.make_jaxpr(function)(*arguments))


@pytest.mark.parametrize(
    ("form", "channels", "kernel"),
    [(None, 8, False), ("auto", 8, False), ("xla", 8, False), ("pallas", 8, True),
     ("pallas", 5, False)],
)  # fmt: skip
def test_the_form_is_chosen_in_one_place(form, channels, kernel, one_device):
    (q, k, v, positional, gate), _ = make_inputs(2, 5, 3, channels)
    attend = kernels.attention_for(one_device, form) if form else kernels.DEFAULT_ATTENTION

    def gated(q, k, v, positional, gate):
        return attend((q, k, v), 3, positional, gate)

    assert uses_kernel(gated, q, k, v, positional, gate) == kernel


def test_forms_agree(one_device):
    (q, k, v, positional, gate), _ = make_inputs(2, 6, 2, 8)
    parts = (jnp.concatenate([q, k], -1), v)
    xla, kernel = (kernels.attention_for(one_device, form) for form in ("xla", "pallas"))
    by_xla = xla(parts, 2, positional, gate, outputs=2)
    by_kernel = kernel(parts, 2, positional, gate, outputs=2)
    assert by_kernel.shape == (2, 2, 16)
    np.testing.assert_allclose(by_kernel, by_xla, atol=1e-5)
    np.testing.assert_allclose(kernel(parts, 2), xla(parts, 2), atol=1e-5)


def test_a_run_asks_for_a_form(make_config):
    from convit_jax.distributed import mesh
    from convit_jax.training import make_experiment
    from convit_jax.training.placement import place

    for form, kernel in (("pallas", True), ("auto", False)):
        config = make_config(attention=form, model__head_dim=8)
        devices = mesh.create_mesh()
        experiment = make_experiment(config, num_examples=100, num_classes=10, mesh=devices)
        placed = place(experiment, devices)
        batch = {
            "image": jax.ShapeDtypeStruct((16, 8, 8, 1), jnp.uint8),
            "label": jax.ShapeDtypeStruct((16,), jnp.int32),
        }
        traced = str(placed.train_step.trace(experiment.abstract_state(), batch).jaxpr)
        assert ("attention_backward" in traced) == kernel
