"""Two processes that share a damaged dataset; training on images of one and four channels."""

import dataclasses
import json
import os
import re
import socket
import subprocess
import sys

import pytest

from convit_jax.training import loop
from tests.field.builders import folder

PROGRAM = """
import json, sys
from convit_jax.console import command_line
from convit_jax.config import resolve
from convit_jax.distributed.processes import join_processes

def main():
    join_processes(heartbeat_seconds=10)
    from convit_jax.training import loop
    loop.train(resolve(json.loads(sys.argv[1])), sys.argv[2])

sys.exit(command_line.run("train", main))
"""


def train_in_two_processes(config, workdir, repository):
    """Return the processes' exit codes and outputs on standard error."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    values = json.dumps(dataclasses.asdict(config))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, values, str(workdir)],
            cwd=repository, stderr=subprocess.PIPE, text=True,
            env=os.environ | {
                "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(index),
            },
        )
        for index in range(2)
    ]  # fmt: skip
    try:
        stderr = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], stderr


@pytest.fixture
def damaged(tmp_path):
    """A hundred images, six of them garbled: more than 4 % of all, but fewer in each half."""
    name = folder(tmp_path / "images", ["cat", "dog"], count=50)
    for class_name in ("cat", "dog"):
        for number in (3, 20, 40):
            (tmp_path / "images" / class_name / f"{number}.png").write_bytes(b"garbled")
    return name


@pytest.mark.parametrize("damaged_split", ["train", "eval"])
def test_two_processes_stop_at_their_common_limit_with_the_same_message(
    damaged_split, damaged, make_config, tmp_path, repository
):
    sound = folder(tmp_path / "sound", ["cat", "dog"], count=50)
    names = {"train": sound, "eval": sound} | {damaged_split: damaged}
    config = make_config(
        train_for="3 steps", eval_every="3 steps", log_every="1 steps", batch_size=32,
        eval_batch_size=20,
        data={"image_size": (8,), "mean": (0.3,), "std": (0.4,), "max_broken": 0.04, **names},
    )  # fmt: skip
    codes, stderr = train_in_two_processes(config, tmp_path / "run", repository)
    assert codes == [1, 1], stderr
    (message,) = {re.findall(r"train: at least.*", text)[-1] for text in stderr}
    expected = r"train: at least [56] of 100 images are broken and max_broken allows 4"
    assert re.match(expected, message)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGBA", 4)])
def test_training_on_images_of_one_and_four_channels(mode, channels, make_config, tmp_path):
    name = folder(tmp_path / "images", ["cat", "dog"], count=10, side=20, mode=mode)
    config = make_config(
        train_for="2 steps", eval_every="2 steps", batch_size=8, eval_batch_size=8,
        model__in_channels=channels, attention_images=4,
        augment={"crop": "random_resized", "flip": 0.5, "mixup": 0.8, "cutmix": 1.0, "erase": 0.25},
        data={"image_size": (8,), "mean": (0.4,) * channels, "std": (0.3,) * channels,
              "train": name, "eval": name},
    )  # fmt: skip
    outcome = loop.train(config, str(tmp_path / "run"))
    assert outcome.step == 2
    assert outcome.evaluation["examples"] == 20
