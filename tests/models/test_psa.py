"""Vanilla positional self-attention (paper Eq. 4), against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

from convit_jax import analysis
from convit_jax.errors import InputError
from convit_jax.kernels import attention_for, choice
from convit_jax.kernels.attention import one_product, two_products
from convit_jax.models import GPSA, PSA, architecture, create_model, forward_flops
from convit_jax.weights import Card, Weights, new_path, open_weights, to_torch, write_weights
from tests.helpers import parameters_by_name, torch_only

GRID = (3, 4)
TINY = {
    "depth": 2, "gpsa_layers": 1, "head_dim": 4, "patch_size": 4, "image_size": (12, 16),
    "num_classes": 5, "positional_attention": "vanilla",
}  # fmt: skip


@pytest.fixture
def layer():
    layer = PSA(4, 3, locality_strength=0.4, rngs=nnx.Rngs(0))
    layer.qk.kernel[...] = jax.random.normal(jax.random.key(1), (12, 24))
    return layer


@pytest.fixture
def tokens():
    return jax.random.normal(jax.random.key(2), (2, 12, 12))


def defined_map(layer, x):
    """softmax(Q Kᵀ / √D + v_posᵀ r_ij), one entry after another."""
    q, k = np.split(np.asarray(x @ layer.qk.kernel[...], np.float64), 2, axis=-1)
    v_pos = np.asarray(layer.pos_proj.kernel[...], np.float64)
    scores = np.zeros((len(x), 4, 12, 12))
    for b, h, i, j in np.ndindex(scores.shape):
        dy, dx = j // 4 - i // 4, j % 4 - i % 4
        head = slice(3 * h, 3 * h + 3)
        scores[b, h, i, j] = q[b, i, head] @ k[b, j, head] / 3**0.5
        scores[b, h, i, j] += np.array([dx, dy, dx**2 + dy**2]) @ v_pos[:, h]
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def test_one_softmax_of_the_sum_of_both_scores(layer, tokens):
    expected = defined_map(layer, tokens)
    np.testing.assert_allclose(layer.attention_map(tokens, GRID), expected, atol=1e-5)


@pytest.mark.parametrize("form", ["auto", one_product, two_products])
@pytest.mark.parametrize("num_outputs", [None, 2])
def test_every_form_computes_the_same(form, num_outputs, layer, tokens):
    layer.attend = attention_for(form=form)
    values = (tokens @ layer.v.kernel[...]).reshape(2, 12, 4, 3)
    heads = np.einsum("bhnm,bmhd->bnhd", defined_map(layer, tokens), values)
    expected = heads.reshape(2, 12, 12) @ layer.proj.kernel[...]
    out = layer(tokens, GRID, num_outputs=num_outputs)
    np.testing.assert_allclose(out, expected[:, :num_outputs], atol=1e-5)


@pytest.mark.parametrize("fused", ["pallas", "cudnn"])
def test_fused_kernels_leave_it_to_xla(fused, monkeypatch, tokens):
    """Where both would be used for gated attention."""
    used = []
    monkeypatch.setattr(choice, "fused_attention", lambda *_: used.append("pallas"))
    monkeypatch.setattr(choice, "cudnn_attention", lambda *_: used.append("cudnn"))
    monkeypatch.setattr(choice.Attention, "_uses_cudnn", lambda *_: fused == "cudnn")
    attend = attention_for(Mesh(np.array(jax.devices()[:1]), ("data",)), form=fused)
    gated, vanilla = (kind(4, 16, attend=attend, rngs=nnx.Rngs(0)) for kind in (GPSA, PSA))
    wide = jnp.tile(tokens, (4, 2, 6))[:, :16, :64]
    with pytest.raises((TypeError, AttributeError)):  # the stand-ins return nothing
        gated(wide, (4, 4))
    assert used == [fused]
    assert vanilla(wide, (4, 4)).shape == (8, 16, 64)
    assert used == [fused]


def test_position_and_content_are_both_trained(layer, tokens):
    grads = nnx.grad(lambda layer: (layer(tokens, GRID) ** 2).sum())(layer)
    for kernel in (grads.pos_proj.kernel, grads.qk.kernel):
        assert np.abs(kernel[...]).max() > 1e-3


def test_it_starts_as_the_convolution_of_gpsa():
    """Without content, the attention is GPSA's positional attention; all other weights are its."""
    vanilla, gated = (kind(9, 2, rngs=nnx.Rngs(0)) for kind in (PSA, GPSA))
    assert parameters_by_name(gated).keys() - parameters_by_name(vanilla).keys() == {"gating"}
    for name, value in parameters_by_name(vanilla).items():
        assert np.array_equal(value, parameters_by_name(gated)[name])
    vanilla.qk.kernel[...] = jnp.zeros((18, 36))
    attention = vanilla.attention_map(jnp.ones((1, 12, 18)), GRID)[0]
    np.testing.assert_allclose(attention, gated.positional_attention(GRID), atol=1e-6)


def test_it_takes_less_arithmetic_than_the_gate():
    gated, vanilla = (
        forward_flops(architecture("convit_tiny", **TINY | {"positional_attention": kind}))
        for kind in ("gated", "vanilla")
    )
    assert 0.9 * gated < vanilla < gated


def test_what_needs_a_gate_is_refused():
    with pytest.raises(InputError, match=r"use_gating=False: expected True, or positional_attent"):
        architecture("convit_tiny", **TINY, use_gating=False)
    with pytest.raises(InputError, match="does not use positional_attention: it has no GPSA"):
        architecture("deit_tiny", positional_attention="vanilla")
    model = create_model("convit_tiny", **TINY)
    for mask in (analysis.mask_content, analysis.mask_position):
        with pytest.raises(InputError, match="positional attention is vanilla"):
            mask(model, 1)


@pytest.fixture
def weights():
    model = create_model("convit_tiny", **TINY)
    a = model.architecture
    tensors = to_torch({n: np.asarray(v) for n, v in parameters_by_name(model).items()}, a)
    return model, Weights("w", tensors, Card(architecture=a))


@pytest.mark.parametrize("name", ["x.safetensors", "checkpoint"])
def test_cards_say_that_it_is_vanilla(name, weights, tmp_path):
    model, opened = weights
    write_weights(opened, new_path(str(tmp_path / name)), model.architecture)
    again = open_weights(str(tmp_path / name)).model()
    assert again.architecture.positional_attention == "vanilla"
    images = jax.random.normal(jax.random.key(0), (1, 12, 16, 3))
    assert np.array_equal(again(images), model(images))


@torch_only
def test_pytorch_files_cannot_say_it(weights, tmp_path):
    model, opened = weights
    with pytest.raises(InputError, match=r"PyTorch's ConViT has no vanilla positional attention"):
        write_weights(opened, new_path(str(tmp_path / "x.pth")), model.architecture)
    assert not list(tmp_path.iterdir())
