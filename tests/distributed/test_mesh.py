"""Several devices: eight fake ones, in a separate process."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from convit_jax.distributed import mesh
from convit_jax.errors import InputError

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


def train_on_devices(num_devices, group_sizes, config, repository):
    """Return {group size: losses of four steps} on fake devices."""
    environment = dict(os.environ)
    environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={num_devices}"
    values = json.dumps(dataclasses.asdict(config))
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, values, json.dumps(group_sizes)],
        cwd=repository, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return {int(fsdp): losses for fsdp, losses in json.loads(result.stdout).items()}


def test_eight_devices_give_the_losses_of_one(make_config, repository):
    """Data parallel, fully sharded and mixed, with random augmentation and accumulation."""
    augment = {"mixup": 0.8, "cutmix": 1.0, "erase": 0.5}
    config = make_config(batch_size=32, optimizer__accumulate=2, ema_decay=0.9, augment=augment)
    expected = train_on_devices(1, [1], config, repository)[1]
    for losses in train_on_devices(8, [1, 2, 8], config, repository).values():
        assert losses == pytest.approx(expected, rel=1e-5)


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
