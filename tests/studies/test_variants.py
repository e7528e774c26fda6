"""Each row of the paper's Table 3 changes what is trained, and nothing else."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from convit_jax import models
from convit_jax.config import architecture, resolve
from convit_jax.errors import InputError
from convit_jax.models.gpsa import convolutional_positions
from convit_jax.studies.variants import (
    RIVALS,
    ROWS,
    TABLE_3,
    Variant,
    apply_variant,
    grid_variant,
    row_variant,
)
from convit_jax.training import make_experiment
from convit_jax.training.optimizer import match_parameters, parameter_names
from tests.helpers import load_module


@pytest.fixture
def convit(twins):
    return twins["convit"]


def train_two_steps(config):
    """Return (before, after) of each parameter by name."""
    experiment = make_experiment(config, num_examples=100, num_classes=10)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (config.batch_size, 8, 8, 1)).astype(np.uint8),
        "label": rng.integers(0, 10, config.batch_size).astype(np.int32),
    }
    step = jax.jit(experiment.train_step)
    before = after = jax.jit(experiment.init_state)()
    for _ in range(2):
        after, _ = step(after, batch)
    names = parameter_names(before.params)
    leaves = (jax.tree.leaves(state.params) for state in (before, after))
    return {name: pair for name, *pair in zip(names, *leaves, strict=True)}


@pytest.mark.parametrize("row", TABLE_3)
def test_row_trains_what_the_paper_says(row, convit):
    expected = TABLE_3[row]
    small = dataclasses.replace(convit.model, depth=2, gpsa_layers=1)
    convit = dataclasses.replace(convit, model=small)
    params = train_two_steps(apply_variant(convit, row_variant(row, convit, "m")))
    gpsa = {name for name in params if name.startswith("blocks.0.attention")}
    positional = {name for name in gpsa if "pos_proj" in name}
    if not expected.use_gpsa:
        assert not positional
        assert "blocks.0.attention.qkv.bias" in params
    else:
        assert len(positional) == 2
        assert any("gating" in name for name in gpsa) == expected.train_gating
        values = params["blocks.0.attention.v.kernel"][0]
        positions = params["blocks.0.attention.pos_proj.kernel"][0]
        assert np.array_equal(values, np.eye(16)) == expected.conv_init
        as_convolution = np.array_equal(positions, convolutional_positions(4, 1.0))
        assert as_convolution == expected.conv_init
    changed = {
        name for name, (before, after) in params.items() if not np.array_equal(before, after)
    }
    unchanged = params.keys() - changed
    # The bias of the positional scores cancels in the softmax: its gradient is only rounding.
    unchanged = {name for name in unchanged if not name.endswith("pos_proj.bias")}
    frozen = expected.use_gpsa and not expected.train_gpsa
    assert unchanged == ({n for n in gpsa if not n.endswith("pos_proj.bias")} if frozen else set())
    if frozen:
        assert not gpsa & changed


@pytest.mark.parametrize("row", RIVALS)
def test_rivals_change_what_they_are_named_for(row, twins):
    changed = architecture(apply_variant(twins["convit"], Variant(row)), 10)
    unchanged = architecture(twins["convit" if row == "vanilla" else "deit"], 10)
    field = {"vanilla": "positional_attention"}.get(row, "init")
    assert changed == dataclasses.replace(unchanged, **{field: row})


def test_variants_of_a_config_that_says_convolutional(convit):
    """Where the convolutional start is gone, so is the word for it."""
    model = dataclasses.replace(convit.model, init="convolutional", use_gating=True)
    convit = dataclasses.replace(convit, model=model)
    starts = {row: architecture(apply_variant(convit, Variant(row)), 10).init for row in ROWS}
    assert starts.pop("mimetic") == "mimetic"
    assert starts.pop("impulse") == "impulse"
    convolutional = {row for row, init in starts.items() if init == "convolutional"}
    assert convolutional == {"a", "b", "f", "vanilla"}
    apply_variant(convit, Variant("", None, 0))


def test_gates_that_are_not_trained_are_one_half(convit):
    config = apply_variant(convit, row_variant("b", convit, "m"))
    model = models.build(architecture(config, 10))
    assert np.allclose(model.blocks[0].attention.gate(), 0.5)
    learned = models.build(architecture(convit, 10))
    assert np.allclose(learned.blocks[0].attention.gate(), jax.nn.sigmoid(1.0))


def test_row_e_is_the_deit_twin(twins):
    """Row e has the same heads, width and parameters as a DeiT config."""
    config = apply_variant(twins["convit"], Variant("e"))
    assert architecture(config, 10) == architecture(twins["deit"], 10)


@pytest.mark.parametrize("row", TABLE_3)
def test_rows_agree_with_the_imagenet_configs(row, repository):
    module = load_module(repository / "configs" / "convit_s_plus.py")
    ours = apply_variant(resolve(module.get_config()), Variant(row))
    theirs = resolve(module.get_config(f"ablation={row}"))
    expected = architecture(theirs, 1000)
    assert architecture(ours, 1000) == expected
    params = nnx.to_pure_dict(nnx.split(nnx.eval_shape(lambda: models.build(expected)))[1])
    frozen = [
        jax.tree.leaves(match_parameters(params, config.optimizer.frozen, "frozen"))
        for config in (ours, theirs)
    ]
    assert frozen[0] == frozen[1]
    other_keys = [
        dataclasses.replace(
            c, model=ours.model, optimizer=dataclasses.replace(c.optimizer, frozen=())
        )
        for c in (ours, theirs)
    ]
    assert other_keys[0] == other_keys[1]


def test_points_change_strength_and_number_of_layers(convit):
    changed = architecture(apply_variant(convit, grid_variant(0.1, 3, convit, "m")), 10)
    assert (changed.locality_strength, changed.gpsa_layers) == (0.1, 3)
    plain = architecture(apply_variant(convit, grid_variant(0.1, 0, convit, "m")), 10)
    assert plain.gpsa_layers == 0
    assert grid_variant(0.1, 0, convit, "m") == grid_variant(1.0, 0, convit, "m")
    assert grid_variant(1.0, 2, convit, "m") == grid_variant(None, None, convit, "m")
    assert grid_variant(1.0, 2, convit, "m").unchanged


def test_rows_of_a_config_with_a_locality_strength(convit):
    strong = dataclasses.replace(
        convit, model=dataclasses.replace(convit.model, locality_strength=2.0)
    )
    for row in TABLE_3:
        changed = architecture(apply_variant(strong, Variant(row)), 10)
        assert changed.conv_init == (TABLE_3[row].conv_init or row == "e")
    assert architecture(apply_variant(strong, Variant("", None, 0)), 10).gpsa_layers == 0


def test_invalid_variants(twins):
    with pytest.raises(InputError, match=r"no row 'h' in Table 3, expected one of a, b, c"):
        row_variant("h", twins["convit"], "m")
    with pytest.raises(InputError, match=r"--variants: the model 'deit' has no GPSA layers"):
        row_variant("b", twins["deit"], "deit")
    with pytest.raises(InputError, match=r"--gpsa-layers: the model 'deit' has no GPSA layers"):
        grid_variant(0.1, 2, twins["deit"], "deit")
    with pytest.raises(InputError, match=r"gpsa_layers=9: expected 0 to 3"):
        apply_variant(twins["convit"], Variant("", None, 9))
