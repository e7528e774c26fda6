import jax
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from convit_jax.config import resolve
from convit_jax.distributed.sharding import RULES, measure_sharded_size, state_sharding
from convit_jax.models import list_models
from convit_jax.training import make_experiment


def abstract_mesh(data, fsdp):
    return AbstractMesh((data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def state_of(name, optimizer="adamw", **overrides):
    config = resolve(
        {"model": {"name": name} | overrides, "ema_decay": 0.9, "optimizer": {"name": optimizer}}
    )
    return make_experiment(config, num_examples=5000, num_classes=1000).abstract_state()


def partitions(state, mesh):
    leaves = jax.tree_util.tree_leaves_with_path(state_sharding(state, mesh))
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf.spec for path, leaf in leaves
    }


@pytest.mark.parametrize("name", [*list_models(), "deit_base_distilled", "deit3_small"])
def test_nearly_all_of_every_model_is_sharded(name):
    state, mesh = state_of(name), abstract_mesh(2, 4)
    sharding = state_sharding(state, mesh)
    for part in ("params", "opt_state", "ema_params"):
        size = measure_sharded_size(getattr(state, part), getattr(sharding, part))
        assert size.sharded / size.total > 0.98
        # A device holds a quarter of each sharded array and all of the others.
        replicated = size.total - size.sharded
        assert size.on_device == pytest.approx(size.sharded / 4 + replicated)


def test_moments_and_averages_are_sharded_like_their_parameters():
    specs = partitions(state_of("convit_tiny"), abstract_mesh(1, 8))
    assert specs["params.blocks.3.mlp.fc1.kernel"] == PartitionSpec(None, "fsdp")
    for name, spec in specs.items():
        for part in (".mu.", ".nu."):
            if part in name:
                assert specs[f"params.{name.partition(part)[2]}"] == spec
        if name.startswith("ema_params."):
            assert specs[name.removeprefix("ema_")] == spec
    assert specs["step"] == PartitionSpec()


@pytest.mark.parametrize(("optimizer", "moments"), [("adamw", 2), ("lamb", 2), ("muon", 1)])
def test_the_moments_of_every_optimizer_are_sharded(optimizer, moments):
    """Muon has one for each of the hidden matrices, which are most of a model."""
    state, mesh = state_of("convit_base", optimizer), abstract_mesh(2, 4)
    sharding = state_sharding(state, mesh)
    size = measure_sharded_size(state.opt_state, sharding.opt_state)
    parameters = measure_sharded_size(state.params, sharding.params)
    assert size.sharded / size.total > 0.98
    assert size.on_device == pytest.approx(moments * parameters.on_device, rel=0.05)


def test_arrays_that_a_group_does_not_divide_are_replicated():
    specs = partitions(state_of("convit_tiny"), abstract_mesh(1, 5))
    assert set(specs.values()) == {PartitionSpec()}


def test_with_groups_of_one_device_nothing_is_sharded():
    state, mesh = state_of("deit_tiny"), abstract_mesh(8, 1)
    size = measure_sharded_size(state.params, state_sharding(state, mesh).params)
    assert (size.sharded, size.on_device) == (0, size.total)
    assert str(size) == "0.0 % sharded, 22.9 MB a device"


def test_every_rule_matches_some_parameter_of_a_convit():
    import re

    names = {n.removeprefix("params.") for n in partitions(state_of("convit_tiny"),
             abstract_mesh(1, 1)) if n.startswith("params.")}  # fmt: skip
    for rule, _ in RULES:
        assert any(re.fullmatch(rule, name) for name in names), rule
