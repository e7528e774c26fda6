import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import convit_jax
from convit_jax.errors import InputError
from convit_jax.models import Architecture, architecture, build, forward_flops, training_flops
from tests.helpers import abstract_parameters

# ConViT: the paper's Table 1 and the released models. DeiT: its definition (Touvron et al. 2021).
PARAMETERS = {
    "convit_tiny": 5_710_512,
    "convit_tiny_plus": 9_972_912,
    "convit_small": 27_777_322,
    "convit_small_plus": 48_979_882,
    "convit_base": 86_540_040,
    "convit_base_plus": 153_134_856,
}
DEIT_WIDTHS = {
    "deit_tiny": 192,
    "deit_tiny_plus": 256,
    "deit_small": 384,
    "deit_small_plus": 576,
    "deit_base": 768,
    "deit_base_plus": 1024,
}


def deit_parameters(width, depth=12, tokens=197, classes=1000, pixels=16 * 16 * 3):
    def linear(inputs, outputs):
        return inputs * outputs + outputs

    block = 4 * width + linear(width, 3 * width) + linear(width, width)
    block += linear(width, 4 * width) + linear(4 * width, width)
    outer = linear(pixels, width) + width + tokens * width + 2 * width + linear(width, classes)
    return depth * block + outer


PARAMETERS |= {name: deit_parameters(width) for name, width in DEIT_WIDTHS.items()}


# 10⁹ multiply-adds of all matrix products, counted with torch on timm's models; the paper's Table 1
# gives 5.4 for ConViT-S and 4.3 for DeiT-S.
MULTIPLY_ADDS = {"convit_tiny": 1.252, "convit_small": 5.747, "convit_base": 17.505}


@pytest.mark.parametrize("name", MULTIPLY_ADDS)
def test_flops_are_those_of_the_matrix_products(name):
    """Except for the last layer's unused tokens. Softmax and other operations add up to 4 %."""
    width = architecture(name).width
    unused = 196 * 10 * width**2 + 2 * 196 * 197 * width
    products = 2 * (1e9 * MULTIPLY_ADDS[name] - unused)
    flops = forward_flops(architecture(name))
    assert products < flops < 1.04 * products
    assert forward_flops(architecture(name, dtype="bfloat16", remat=True)) == flops


def test_the_backward_pass_counts_twice_and_frozen_parameters_save_their_part():
    a = architecture("convit_tiny", depth=4, gpsa_layers=2, num_classes=10)
    forward = forward_flops(a)
    assert training_flops(a) == 3 * forward
    assert training_flops(a, lambda path, _: True) == pytest.approx(3 * forward)
    assert training_flops(a, lambda path, _: path[0] == "head") == pytest.approx(forward, rel=1e-3)
    # Without the patches' embedding and the first three of four blocks, of the last block, which
    # computes one token, not all is differentiated.
    last = training_flops(a, lambda path, _: path[:2] == ("blocks", 3) or path[0] == "head")
    assert 1.1 * forward < last < 1.5 * forward
    # The backward pass goes through frozen matrices above trained ones.
    mlp = training_flops(a, lambda path, _: "mlp" not in path)
    assert 2.4 * forward < mlp < 2.6 * forward


def test_list_models_lists_the_twelve_models():
    assert convit_jax.list_models() == list(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_exact(name):
    leaves = jax.tree.leaves(abstract_parameters(name))
    assert sum(leaf.size for leaf in leaves) == PARAMETERS[name]
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("name", "count"), [("tiny", 9_972_712), ("small", 48_979_432), ("base", 153_134_056)]
)
def test_plus_models_without_gpsa_have_the_released_codes_counts(name, count):
    leaves = jax.tree.leaves(abstract_parameters(f"convit_{name}_plus", gpsa_layers=0))
    assert sum(leaf.size for leaf in leaves) == count


TINY = {"depth": 2, "gpsa_layers": 1, "head_dim": 4, "patch_size": 4, "dtype": "float32"}
CHANGES = {
    "num_heads": 9,
    "head_dim": 8,
    "depth": 3,
    "gpsa_layers": 2,
    "mlp_ratio": 2.0,
    "qkv_bias": True,
    "patch_size": 8,
    "in_channels": 1,
    "image_size": (16, 24),
    "num_classes": 7,
    "locality_strength": 2.0,
    "conv_init": False,
    "use_gating": False,
    "positional_attention": "vanilla",
    "use_pos_embed": False,
    "drop_rate": 0.5,
    "drop_path_rate": 0.5,
    "distillation_token": True,
    "layer_scale": 0.5,
    "dtype": "bfloat16",
    "remat": True,
}


def test_every_field_is_covered_by_the_test_below():
    fields = {field.name for field in dataclasses.fields(Architecture)}
    # Those of models without GPSA layers: tested below, and in test_initialization.py.
    assert set(CHANGES) | {"class_token_position", "init"} == fields


def behaviour(**overrides):
    """Return the parameters' shapes, training logits, and whether blocks are recomputed."""
    options = TINY | {"image_size": 16, "num_classes": 5} | overrides
    a = architecture("convit_tiny", **options)
    images = np.random.default_rng(0).normal(size=(2, *a.image_size, a.in_channels))
    images = images.astype(np.float32)
    shapes = jax.tree.map(jnp.shape, abstract_parameters("convit_tiny", **options))
    logits = jax.jit(lambda: build(a)(images, key=jax.random.key(0)))()
    # Recomputation changes only the program of the gradient, not the numbers.
    graph, state = nnx.split(nnx.eval_shape(lambda: build(a)))
    program = jax.make_jaxpr(jax.grad(lambda s: nnx.merge(graph, s)(images).sum()))(state)
    return shapes, np.asarray(logits).tolist(), "remat" in str(program)


@pytest.fixture(scope="module")
def unchanged():
    return behaviour()


@pytest.mark.parametrize("field", CHANGES)
def test_every_field_changes_the_model(field, unchanged):
    assert behaviour(**{field: CHANGES[field]}) != unchanged


def test_the_class_token_of_deit_has_its_own_position():
    rows = abstract_parameters("deit_tiny")["pos_embed"].shape[1]
    assert rows == 197
    rows = abstract_parameters("deit_tiny", class_token_position=False)["pos_embed"].shape[1]
    assert rows == 196


def test_parameters_are_a_function_of_the_seed():
    def head(seed):
        return convit_jax.create_model("convit_tiny", seed=seed, **TINY, image_size=16).head

    assert jnp.array_equal(head(1).kernel[...], head(1).kernel[...])
    assert not jnp.array_equal(head(1).kernel[...], head(2).kernel[...])


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("convit_smal", {}, "did you mean 'convit_small'"),
        ("convit_tiny", {"dept": 3}, "did you mean 'depth'"),
        ("convit_tiny", {"num_heads": 6}, "not a perfect square.*use 4 or 9"),
        ("convit_tiny", {"image_size": 100}, r"nearest size that fits is \(96, 96\)"),
        ("convit_tiny", {"dtype": "float16"}, "expected 'float32' or 'bfloat16'"),
        ("convit_tiny", {"mlp_ratio": 0.001}, "mlp_ratio=0.001: expected at least 0.00521, one ch"),
        ("convit_tiny", {"mlp_ratio": math.nan}, "mlp_ratio=nan: expected a finite number"),
        ("convit_tiny", {"gpsa_layers": 13}, "expected 0 to 12"),
        ("convit_tiny", {"drop_path_rate": 1.0}, "expected at least 0, below 1"),
        ("deit_tiny", {"use_gating": False}, "does not use use_gating: it has no GPSA layers"),
        ("deit_tiny", {"gpsa_layers": 3}, "use convit_tiny"),
        (
            "convit_tiny",
            {"conv_init": False, "locality_strength": 2.0},
            "does not use locality_strength: conv_init is off",
        ),
    ],
)
def test_mistakes_have_a_message(name, overrides, message):
    with pytest.raises(InputError, match=message):
        nnx.eval_shape(lambda: convit_jax.create_model(name, **overrides))


def test_without_convolutional_init_any_number_of_heads_is_allowed():
    assert architecture("convit_tiny", num_heads=6, conv_init=False).width == 288
    nnx.eval_shape(lambda: convit_jax.create_model("convit_tiny", num_heads=6, conv_init=False))
