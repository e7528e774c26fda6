"""Several processes of one run, on this machine."""

import dataclasses
import json
import os
import socket
import subprocess
import sys

import pytest

PROGRAM = """
import json, sys
from convit_jax import command_line
from convit_jax.config import resolve
from convit_jax.distributed.processes import ending_all_on_failure, exit_process, join_processes

def main():
    join_processes(heartbeat_seconds=10)
    from convit_jax.training import loop
    with ending_all_on_failure():
        outcome = loop.train(resolve(json.loads(sys.argv[1])), sys.argv[2])
    return 0 if outcome.stopped_by is None else 128 + outcome.stopped_by

exit_process(command_line.run("train", main))
"""


@pytest.fixture
def start(repository, tmp_path):
    """A function: starts processes of 4 devices that train with a config; ends them at the end.

    They run in the checkout, or `apart`, each in a directory of its own. `faults`: what is done in
    the process of an index before it begins, such as breaking a function.
    """
    running = []

    def run(config, workdir, count, apart=False, faults=None):
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
            if dataclasses.is_dataclass(config):
                config = dataclasses.asdict(config)
            with (tmp_path / f"{index}.log").open("w") as log:
                values = json.dumps(config)
                fault = (faults or {}).get(index, "")
                process = subprocess.Popen(
                    [sys.executable, "-c", fault + PROGRAM, values, str(workdir)],
                    cwd=tmp_path / str(index) if apart else repository,
                    env=environment | {"PYTHONPATH": str(repository)}, stdout=log, stderr=log,
                )  # fmt: skip
            running.append(process)
        return running[-count:]

    yield run
    for process in running:
        process.kill()
