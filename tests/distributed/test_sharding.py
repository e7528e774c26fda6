import jax
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from convit_jax.config import resolve
from convit_jax.distributed.sharding import RULES, measure_sharded_size, state_sharding
from convit_jax.models import list_models
from convit_jax.training import make_experiment


def abstract_mesh(data, fsdp):
    return AbstractMesh((data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def state_of(name, **overrides):
    config = resolve({"model": {"name": name} | overrides, "ema_decay": 0.9})
    return make_experiment(config, num_examples=5000, num_classes=1000).abstract_state()


def partitions(state, mesh):
    leaves = jax.tree_util.tree_leaves_with_path(state_sharding(state, mesh))
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf.spec for path, leaf in leaves
    }


@pytest.mark.parametrize("name", list_models())
def test_nearly_all_of_every_model_is_spread(name):
    state, mesh = state_of(name), abstract_mesh(2, 4)
    where = state_sharding(state, mesh)
    for part in ("params", "opt_state", "ema_params"):
        spread = measure_sharded_size(getattr(state, part), getattr(where, part))
        assert spread.spread / spread.total > 0.98
        # What is spread lies in quarters, the rest whole.
        whole = spread.total - spread.spread
        assert spread.on_device == pytest.approx(spread.spread / 4 + whole)


def test_moments_and_averages_lie_as_their_parameters():
    found = partitions(state_of("convit_tiny"), abstract_mesh(1, 8))
    assert found["params.blocks.3.mlp.fc1.kernel"] == PartitionSpec(None, "fsdp")
    for name, spec in found.items():
        for part in (".mu.", ".nu."):
            if part in name:
                assert found[f"params.{name.partition(part)[2]}"] == spec
        if name.startswith("ema_params."):
            assert found[name.removeprefix("ema_")] == spec
    assert found["step"] == PartitionSpec()


def test_what_a_group_does_not_divide_stays_whole():
    found = partitions(state_of("convit_tiny"), abstract_mesh(1, 5))
    assert set(found.values()) == {PartitionSpec()}


def test_on_one_device_nothing_is_spread():
    state, mesh = state_of("deit_tiny"), abstract_mesh(8, 1)
    spread = measure_sharded_size(state.params, state_sharding(state, mesh).params)
    assert (spread.spread, spread.on_device) == (0, spread.total)
    assert str(spread) == "0.0 % sharded, 22.9 MB a device"


def test_every_rule_matches_some_parameter_of_a_convit():
    import re

    names = {n.removeprefix("params.") for n in partitions(state_of("convit_tiny"),
             abstract_mesh(1, 1)) if n.startswith("params.")}  # fmt: skip
    for rule, _ in RULES:
        assert any(re.fullmatch(rule, name) for name in names), rule
