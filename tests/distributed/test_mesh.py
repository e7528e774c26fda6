"""Several devices: eight fake ones, in a process of their own."""

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
from convit_jax.training import make_experiment, mesh
from convit_jax.training.placement import place

experiment = make_experiment(resolve(json.loads(sys.argv[1])), num_examples=100, num_classes=10)
losses = {}
for fsdp in json.loads(sys.argv[2]):
    placed = place(experiment, mesh.create_mesh(fsdp))
    state = jax.jit(experiment.init_state, out_shardings=placed.state)()
    hidden = state.params["blocks"][0]["mlp"]["fc1"]["kernel"]
    assert hidden.addressable_shards[0].data.size * fsdp == hidden.size
    rng, losses[fsdp] = np.random.default_rng(0), []
    for _ in range(4):
        batch = {"image": rng.integers(0, 256, (32, 8, 8, 1)).astype(np.uint8),
                 "label": rng.integers(0, 10, 32).astype(np.int32)}
        batch = mesh.to_global(batch, placed.rows, 32)
        assert len(batch["image"].addressable_shards) == jax.device_count()
        state, metrics = placed.train_step(state, batch)
        losses[fsdp].append(float(metrics["loss"]))
print(json.dumps(losses))
"""


def losses_on(devices, groups, config, repository):
    """{size of a group: losses of four steps} on so many fake devices."""
    environment = dict(os.environ)
    environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    values = json.dumps(dataclasses.asdict(config))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, values, json.dumps(groups)],
        cwd=repository, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {int(fsdp): losses for fsdp, losses in json.loads(done.stdout).items()}


def test_eight_devices_give_the_losses_of_one(make_config, repository):
    """Data parallel, spread over all, and mixed, with all that draws or accumulates on."""
    augment = {"mixup": 0.8, "cutmix": 1.0, "erase": 0.5}
    config = make_config(batch_size=32, optimizer__accumulate=2, ema_decay=0.9, augment=augment)
    of_one = losses_on(1, [1], config, repository)[1]
    found = losses_on(8, [1, 2, 8], config, repository)
    for losses in found.values():
        assert losses == pytest.approx(of_one, rel=1e-5)


def test_a_batch_that_does_not_fit_the_devices_is_told_in_a_sentence(monkeypatch):
    class Eight:
        size = 8

    mesh.check_divides(Eight, 16, "batch_size")
    with pytest.raises(InputError, match=r"20 images do not divide among 8 devices.*16 and 24"):
        mesh.check_divides(Eight, 20, "batch_size")
    with pytest.raises(InputError, match=r"24 images.*8 devices in pairs, .*: 16 and 32"):
        mesh.check_divides(Eight, 24, "batch_size", pairs=True)
    told = r"48 images do not divide among 8 devices in 4 parts \(config.optimizer.accumulate\)"
    with pytest.raises(InputError, match=rf"{told} in pairs.*that do: 64$"):
        mesh.check_divides(Eight, 48, "batch_size", pairs=True, parts=4)
    with pytest.raises(InputError, match=r"3 images do not divide among 8 devices.*that do: 8"):
        mesh.check_divides(Eight, 3, "batch_size")
