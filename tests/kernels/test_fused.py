"""The fused kernel, interpreted on the CPU, against its definition in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh

from convit_jax import kernels
from convit_jax.kernels import blocks as blocks_module
from convit_jax.kernels.fused import Target, fused_attention
from tests.helpers import assert_trees_close

AMPLE_VMEM, MIB = 2**27, 2**20


def make_inputs(batch, tokens, heads, channels, *, size=1.0, seed=0, dtype=jnp.float32):
    """Return queries, keys and values [B, N, H D], a positional map, gates, and d_out."""
    rng = np.random.default_rng(seed)
    shape = (batch, tokens, heads * channels)
    q, k, v, d_out = (jnp.asarray(rng.normal(size=shape), dtype) for _ in range(4))
    positional = jax.nn.softmax(jnp.asarray(rng.normal(size=(heads, tokens, tokens)), jnp.float32))
    gate = jnp.asarray(rng.uniform(size=heads), jnp.float32)
    return (q * size, k * size, v, positional, gate), d_out


def expected(inputs, d_out):
    """Return the definition and its derivatives in float64."""
    q, k, v, positional, gate = (np.asarray(x, np.float64) for x in inputs)
    heads = len(gate)

    def split_heads(x):
        x = np.asarray(x, np.float64)
        return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)

    def merge_heads(x):
        return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)

    q, k, v, d_out = (split_heads(x) for x in (q, k, v, d_out))
    scale = q.shape[-1] ** -0.5
    scores = q @ k.swapaxes(-1, -2) * scale
    content = np.exp(scores - scores.max(-1, keepdims=True))
    content /= content.sum(-1, keepdims=True)
    gate_map = gate[:, None, None]
    mixture = (1 - gate_map) * content + gate_map * positional
    d_mixture = d_out @ v.swapaxes(-1, -2)
    d_content = (1 - gate_map) * d_mixture
    d_scores = content * (d_content - (d_content * content).sum(-1, keepdims=True)) * scale
    return (
        merge_heads(mixture @ v),
        merge_heads(d_scores @ k),
        merge_heads(d_scores.swapaxes(-1, -2) @ q),
        merge_heads(mixture.swapaxes(-1, -2) @ d_out),
        (gate_map * d_mixture).sum(0),
        (d_mixture * (positional - content)).sum((0, 2, 3)),
    )


def run(target, inputs, d_out, *, parts=1, gated=True):
    """Return the kernel's result and gradients, with q, k and v joined into `parts` arrays."""
    q, k, v, positional, gate = inputs
    heads = len(gate)

    def apply(q, k, v, positional, gate):
        joined = {
            1: lambda: (jnp.concatenate([q, k, v], -1),),
            2: lambda: (jnp.concatenate([q, k], -1), v),
            3: lambda: (q, k, v),
        }[parts]()
        gating = (positional, gate) if gated else (None, None)
        return fused_attention(target, heads, joined, *gating)

    @jax.jit
    def outputs_and_gradients(inputs, d_out):
        out, vjp = jax.vjp(apply, *inputs)
        return out, *vjp(d_out)

    return outputs_and_gradients((q, k, v, positional, gate), d_out)


def assert_matches_definition(results, inputs, d_out, tolerance=1e-4):
    reference = expected(inputs, d_out)
    for name, a, b in zip(("out", "dq", "dk", "dv", "dT", "dg"), results, reference, strict=True):
        size = max(np.abs(b).max(), 1.0)
        np.testing.assert_allclose(
            np.asarray(a, np.float64) / size, b / size, atol=tolerance, err_msg=name
        )


# Failures are reported without shrinking, which would compile for minutes.
@settings(max_examples=4, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    batch=st.integers(1, 4),
    cores=st.integers(1, 2),
    tokens=st.integers(1, 30),
    heads=st.integers(1, 3),
    channels=st.sampled_from([8, 16, 24]),
    parts=st.integers(1, 3),
    extreme=st.sampled_from([None, 0.0, 1.0]),
    size=st.sampled_from([1.0, 30.0]),
    seed=st.integers(0, 99),
)
def test_the_kernel_matches_its_definition(
    batch, cores, tokens, heads, channels, parts, extreme, size, seed
):
    """Includes scores up to thousands, gates of exactly 0 and 1, and two cores."""
    inputs, d_out = make_inputs(batch, tokens, heads, channels, size=size, seed=seed)
    if extreme is not None:
        inputs = (*inputs[:4], inputs[4].at[0].set(extreme))
    target = Target(AMPLE_VMEM, cores, interpret=True)
    results = run(target, inputs, d_out, parts=parts)
    assert_matches_definition(results, inputs, d_out, tolerance=1e-4 * size)


def test_with_more_tokens_than_lanes():
    inputs, d_out = make_inputs(1, 150, 1, 8)
    assert_matches_definition(run(Target(AMPLE_VMEM, interpret=True), inputs, d_out), inputs, d_out)


def test_plain_attention_equals_a_gate_of_zero():
    inputs, d_out = make_inputs(2, 9, 2, 8)
    inputs = (*inputs[:4], jnp.zeros(2))
    results = run(Target(AMPLE_VMEM, interpret=True), inputs, d_out, gated=False)
    assert_trees_close(results[:4], expected(inputs, d_out)[:4], atol=2e-5)


@pytest.mark.parametrize("gated", [True, False])
def test_heads_in_groups_and_queries_in_tiles(gated, monkeypatch):
    """Large images need several groups of heads, loops over heads, and several tiles."""
    monkeypatch.setattr(blocks_module, "_MAX_UNROLLED_SCORES", 0)
    monkeypatch.setattr(blocks_module, "_MAX_SINGLE_TILE", 0)
    target = Target(11 * MIB // 2, cores=2, interpret=True)
    blocks = target.blocks(2, 150, 2, 8, jnp.float32)
    assert (blocks.groups, len(blocks.tiles), blocks.unrolled) == (2, 2, False)
    assert blocks.grid(2) == (2, 2, 1)
    inputs, d_out = make_inputs(2, 150, 2, 8)
    results = run(target, inputs, d_out, parts=2, gated=gated)
    if gated:
        assert_matches_definition(results, inputs, d_out)
    else:
        reference = expected((*inputs[:4], jnp.zeros(2)), d_out)
        assert_trees_close(results[:4], reference[:4], atol=2e-5)


def test_bfloat16():
    inputs, d_out = make_inputs(2, 20, 2, 16, dtype=jnp.bfloat16)
    results = run(Target(AMPLE_VMEM, interpret=True), inputs, d_out, parts=2)
    assert [x.dtype for x in results[:4]] == [jnp.bfloat16] * 4
    assert_matches_definition(results, inputs, d_out, tolerance=0.03)


@pytest.mark.parametrize(
    ("heads", "channels"), [(4, 48), (9, 48), (16, 48), (4, 64), (9, 64), (16, 64), (6, 64)]
)
@pytest.mark.parametrize("tokens", [1, 7, 196, 197, 576, 784])
def test_every_model_of_the_paper_fits(heads, channels, tokens):
    """With 128 MiB of VMEM; up to 197 tokens also with 64 MiB, in a single group of heads."""
    blocks = blocks_module.fitting_blocks(64, tokens, heads, channels, jnp.bfloat16, 128 * MIB)
    assert blocks.heads == blocks.group * blocks.groups
    assert blocks.lanes % blocks.tile == 0
    if tokens <= 197:
        blocks = blocks_module.fitting_blocks(64, tokens, heads, channels, jnp.bfloat16, 64 * MIB)
        assert blocks.groups == 1


def test_two_cores_share_the_steps_if_these_are_even():
    blocks = {n: blocks_module.fitting_blocks(n, 196, 4, 48, jnp.bfloat16, AMPLE_VMEM, 2)
              for n in (1, 2, 3, 4, 64)}  # fmt: skip
    assert [blocks[n].grid(n) for n in blocks] == [
        (1, 1, 1), (1, 1, 1), (1, 1, 3), (1, 2, 1), (1, 2, 16),
    ]  # fmt: skip


def test_unsupported_inputs_have_no_blocks():
    assert blocks_module.fitting_blocks(8, 4000, 4, 64, jnp.bfloat16, 16 * MIB) is None
    assert blocks_module.fitting_blocks(8, 196, 4, 5, jnp.float32, AMPLE_VMEM) is None
    assert blocks_module.fitting_blocks(8, 196, 4, 8, jnp.bfloat16, AMPLE_VMEM) is None


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
def test_attention_for_chooses_the_form(form, channels, kernel, one_device):
    (q, k, v, positional, gate), _ = make_inputs(2, 5, 3, channels)
    attend = kernels.attention_for(one_device, form) if form else kernels.DEFAULT_ATTENTION

    def gated(q, k, v, positional, gate):
        return attend((q, k, v), 3, positional, gate)

    assert uses_kernel(gated, q, k, v, positional, gate) == kernel


def test_forms_agree(one_device):
    (q, k, v, positional, gate), _ = make_inputs(2, 6, 2, 8)
    parts = (jnp.concatenate([q, k], -1), v)
    xla, kernel = (kernels.attention_for(one_device, form) for form in ("xla", "pallas"))
    xla_out = xla(parts, 2, positional, gate, num_outputs=2)
    kernel_out = kernel(parts, 2, positional, gate, num_outputs=2)
    assert kernel_out.shape == (2, 2, 16)
    np.testing.assert_allclose(kernel_out, xla_out, atol=1e-5)
    np.testing.assert_allclose(kernel(parts, 2), xla(parts, 2), atol=1e-5)


def test_the_config_chooses_the_form(make_config):
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
