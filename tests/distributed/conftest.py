"""Starting several processes of one run on this machine."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from tests.processes import free_port, process_variables, simulated_devices

PROGRAM = """
import json, sys
from convit_jax.config import resolve
from convit_jax.console import command_line
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
    """A function that starts processes with 4 devices each, which are killed after the test.

    Args:
        config: a config, or its values as a dict.
        workdir: the workdir.
        num_processes: number of processes.
        separate_directories: whether each runs in its own directory instead of the checkout.
        faults: {process index: code} to run before the program, such as breaking a function.
    """
    running = []

    def run(config, workdir, num_processes, separate_directories=False, faults=None):
        values, port = json.dumps(config, default=dataclasses.asdict), free_port()
        for index in range(num_processes):
            variables = process_variables(index, num_processes, port) | simulated_devices(4)
            with (tmp_path / f"{index}.log").open("w") as log:
                fault = (faults or {}).get(index, "")
                process = subprocess.Popen(
                    [sys.executable, "-c", fault + PROGRAM, values, str(workdir)],
                    cwd=tmp_path / str(index) if separate_directories else repository,
                    env=os.environ | variables | {"PYTHONPATH": str(repository)},
                    stdout=log, stderr=log,
                )  # fmt: skip
            running.append(process)
        return running[-num_processes:]

    yield run
    for process in running:
        process.kill()
