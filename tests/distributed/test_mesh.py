"""Several devices: eight fake ones, in a separate process."""

import dataclasses
import json

import pytest

from convit_jax.distributed import mesh
from convit_jax.errors import InputError
from tests.processes import simulated_devices

PROGRAM = """
import json, sys
import jax, numpy as np
from convit_jax.config import resolve
from convit_jax.distributed import mesh
from convit_jax.training import make_experiment
from convit_jax.training.placement import place

experiment = make_experiment(resolve(json.loads(sys.argv[1])), num_examples=100, num_classes=10)
losses = {}
for fsdp in json.loads(sys.argv[2]):
    placement = place(experiment, mesh.create_mesh(fsdp))
    state = jax.jit(experiment.init_state, out_shardings=placement.state)()
    hidden = state.params["blocks"][0]["mlp"]["fc1"]["kernel"]
    assert hidden.addressable_shards[0].data.size * fsdp == hidden.size
    rng, losses[fsdp] = np.random.default_rng(0), []
    for _ in range(4):
        batch = {"image": rng.integers(0, 256, (32, 8, 8, 1)).astype(np.uint8),
                 "label": rng.integers(0, 10, 32).astype(np.int32)}
        batch = mesh.to_global(batch, placement.rows, 32)
        assert len(batch["image"].addressable_shards) == jax.device_count()
        state, metrics = placement.train_step(state, batch)
        losses[fsdp].append(float(metrics["loss"]))
print(json.dumps(losses))
"""


def train_on_devices(num_devices, group_sizes, config, run_python):
    """Return {group size: losses of four steps} on fake devices."""
    arguments = [json.dumps(values) for values in (dataclasses.asdict(config), group_sizes)]
    result = run_python("-c", PROGRAM, *arguments, **simulated_devices(num_devices))
    assert result.returncode == 0, result.stderr
    return {int(fsdp): losses for fsdp, losses in json.loads(result.stdout).items()}


@pytest.mark.parametrize(
    ("frozen", "group_sizes"), [((), [1, 2, 8]), ((r"patch_embed\..*", r"blocks\.0\..*"), [2])]
)
def test_eight_devices_give_the_losses_of_one(make_config, run_python, frozen, group_sizes):
    """Data parallel, fully sharded and mixed, with random augmentation and accumulation."""
    # A group of 8 rows is on several devices, and in both parts.
    augment = {"mixup": 0.8, "cutmix": 1.0, "mix_group": 8, "erase": 0.5}
    config = make_config(
        batch_size=32,
        optimizer__accumulate=2,
        optimizer__clip_norm=0.1,
        optimizer__frozen=frozen,
        ema_decay=0.9,
        augment=augment,
    )
    expected = train_on_devices(1, [1], config, run_python)[1]
    for losses in train_on_devices(8, group_sizes, config, run_python).values():
        assert losses == pytest.approx(expected, rel=1e-5)


AUGMENTATION = """
import re
import jax, jax.numpy as jnp, numpy as np
from convit_jax.data.mixing import Erasing, Mixing, draw_mixing
from convit_jax.distributed import mesh as meshes
from convit_jax.training.step import StepConfig, augment, with_draws

config = StepConfig(seed=0, num_classes=32, mean=(0.5,), std=(0.25,), label_smoothing=0.0,
                    accumulate=1, ema_decay=0.0, erasing=Erasing(ERASE),
                    mixing=Mixing(0.8, 1.0, prob=0.8, group=GROUP))
rng = np.random.default_rng(0)
batch = {"image": rng.integers(0, 256, (32, 12, 20, 1)).astype(np.uint8),
         "label": np.arange(32).astype(np.int32)}
erase_key, mix_key = jax.random.key(1), jax.random.key(2)

def run(batch):
    return augment(with_draws(batch, config, erase_key, mix_key), config)

results = []
for devices in (jax.devices()[:1], jax.devices()):
    rows = meshes.batch_sharding(meshes.create_mesh(1, devices))
    compiled = jax.jit(run, in_shardings=rows, out_shardings=rows).lower(batch).compile()
    text = compiled.as_text()
    assert not re.search("all-(reduce|gather|to-all)|collective-permute|reduce-scatter", text)
    results.append(compiled(jax.device_put(batch, rows)))
for one, eight in zip(*results, strict=True):
    assert len(eight.addressable_shards) == jax.device_count() == 8
    np.testing.assert_allclose(one, eight, atol=1e-6)
if not ERASE:
    draws = draw_mixing(config.mixing, mix_key, 32, (12, 20))
    images = (batch["image"] / 255.0 - 0.5) / 0.25
    for row, (weight, box) in enumerate(zip(draws.weight, np.asarray(draws.box), strict=True)):
        own = np.full((12, 20, 1), float(weight))
        own[box[0]:box[1], box[2]:box[3]] = 0
        expected = own * images[row] + (1 - own) * images[row ^ 1]
        np.testing.assert_allclose(results[1][0][row], expected, atol=1e-5)
        np.testing.assert_allclose(results[1][1][row, row], own.mean(), atol=1e-6)
"""


@pytest.mark.parametrize(("group", "erase"), [(8, 0.0), (4, 0.5), (0, 0.0)])
def test_augmentation_is_the_same_on_eight_devices_and_without_communication(
    group, erase, run_python
):
    """A group is on one device or on several; the images equal NumPy's."""
    program = AUGMENTATION.replace("GROUP", str(group)).replace("ERASE", str(erase))
    result = run_python("-c", program, **simulated_devices(8))
    assert result.returncode == 0, result.stderr


def test_a_batch_that_does_not_divide_among_the_devices_is_an_input_error():
    class EightDevices:
        size = 8

    mesh.check_divides(EightDevices, 16, "batch_size")
    with pytest.raises(InputError, match=r"20 images do not divide among 8 devices.*16 and 24"):
        mesh.check_divides(EightDevices, 20, "batch_size")
    with pytest.raises(InputError, match=r"24 images.*8 devices in pairs, .*: 16 and 32"):
        mesh.check_divides(EightDevices, 24, "batch_size", pairs=True)
    problem = r"48 images do not divide among 8 devices in 4 parts \(config.optimizer.accumulate\)"
    with pytest.raises(InputError, match=rf"{problem} in pairs.*that do: 64$"):
        mesh.check_divides(EightDevices, 48, "batch_size", pairs=True, parts=4)
    with pytest.raises(InputError, match=r"3 images do not divide among 8 devices.*that do: 8"):
        mesh.check_divides(EightDevices, 3, "batch_size")
