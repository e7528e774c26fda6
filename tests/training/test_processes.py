"""Several processes of one run, each with devices of its own, on this machine."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from convit_jax.errors import InputError
from convit_jax.training import loop
from convit_jax.training.processes import join_processes

PROGRAM = """
import json, sys
from convit_jax import command_line
from convit_jax.config import resolve
from convit_jax.training.processes import join_processes

def main():
    join_processes(heartbeat_seconds=10)
    from convit_jax.training import loop
    outcome = loop.train(resolve(json.loads(sys.argv[1])), sys.argv[2])
    return 0 if outcome.stopped_by is None else 128 + outcome.stopped_by

sys.exit(command_line.run("train", main))
"""


@pytest.fixture
def start(repository, tmp_path):
    """A function: starts processes of 4 devices that train with a config; ends them at the end."""
    running = []

    def run(config, workdir, count):
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        for index in range(count):
            environment = os.environ | {
                "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(index),
            }
            with (tmp_path / f"{index}.log").open("w") as log:
                values = json.dumps(dataclasses.asdict(config))
                process = subprocess.Popen(
                    [sys.executable, "-c", PROGRAM, values, str(workdir)],
                    cwd=repository, env=environment, stdout=log, stderr=log,
                )  # fmt: skip
            running.append(process)
        return running[-count:]

    yield run
    for process in running:
        process.kill()


def wait_for(text, path, seconds=180):
    for _ in range(seconds * 10):
        if path.exists() and text in path.read_text():
            return
        time.sleep(0.1)
    pytest.fail(f"no '{text}' in {path.read_text() if path.exists() else path}")


TOLD = ("train/loss", "train/gradient", "train/accuracy", "eval/", "gate/", "nonlocality/")


def metrics_of(workdir):
    """{(step, name): value} of losses, gradients, evaluations and attention."""
    found = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        for name, value in record.items():
            if name.startswith(TOLD):
                found[record["step"], name] = value
    return found


def test_two_processes_stop_together_and_another_mesh_goes_on_to_the_same_end(
    make_config, start, tmp_path
):
    """2 x 4 devices in groups of 2, SIGTERM to one process, then one process of one device."""
    config = make_config(
        train_for="40 steps", eval_every="20 steps", log_every="1 steps", ema_decay=0.9,
        checkpoint__every="40 steps", optimizer__accumulate=2, batch_size=32, attention_images=100,
        augment={"rotate": 10.0, "mixup": 0.8, "cutmix": 1.0, "erase": 0.3},
    )  # fmt: skip
    expected = tmp_path / "alone"
    loop.train(config, str(expected))

    workdir = tmp_path / "together"
    spread = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, fsdp=2))
    processes = start(spread, workdir, 2)
    wait_for("step 3/40", tmp_path / "1.log")
    processes[1].send_signal(signal.SIGTERM)
    codes = [process.wait(timeout=120) for process in processes]
    log = (tmp_path / "0.log").read_text()
    assert codes == [128 + signal.SIGTERM] * 2, log
    assert "8 device(s) (cpu) in 2 process(es), mesh data=4 x fsdp=2" in log
    assert "global batch 32: 16 a process, 4 a device" in log
    (saved,) = [int(path.name) for path in (workdir / "checkpoints").iterdir()]
    assert 3 <= saved < 40
    assert f"stopped by SIGTERM after step {saved} of 40" in log
    assert f"stopped by SIGTERM after step {saved} of 40" in (tmp_path / "1.log").read_text()

    outcome = loop.train(config, str(workdir))
    assert outcome.step == 40
    found, wanted = metrics_of(workdir), metrics_of(expected)
    assert found.keys() == wanted.keys()
    assert {name: found[name] for name in found} == pytest.approx(wanted, rel=2e-4, abs=1e-6)
    assert found[40, "eval/examples"] == 397
    assert found[40, "gate/layer_01/head_04"] != found[20, "gate/layer_01/head_04"]


def test_a_process_that_dies_ends_the_others_with_a_message(make_config, start, tmp_path):
    config = make_config(
        train_for="100000 steps", eval_every="100000 steps", log_every="1 steps",
        checkpoint__every="100000 steps",
    )  # fmt: skip
    first, second = start(config, tmp_path / "run", 2)
    wait_for("step 2/", tmp_path / "1.log")
    second.kill()
    assert first.wait(timeout=60) != 0
    assert "another task died" in (tmp_path / "0.log").read_text()


@pytest.mark.parametrize(
    "told",
    [
        {"JAX_PROCESS_ID": "1"},
        {"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "2"},
        {
            "JAX_COORDINATOR_ADDRESS": "host:1",
            "JAX_NUM_PROCESSES": "two",
            "JAX_PROCESS_ID": "0",
        },
    ],
)
def test_half_a_telling_is_a_mistake(told, monkeypatch):
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"expected JAX_COORDINATOR_ADDRESS=HOST:PORT"):
        join_processes()
