"""Processes that tests start, and waiting for them; imports neither JAX nor pytest."""

import os
import socket
import time


def free_port():
    """Return a port of this machine that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def simulated_devices(count):
    """Return the environment variable of a process with several CPU devices."""
    flags = os.environ.get("XLA_FLAGS", ""), f"--xla_force_host_platform_device_count={count}"
    return {"XLA_FLAGS": " ".join(filter(None, flags))}


def process_variables(index, num_processes, port):
    """Return the environment variables of one of several processes of a run."""
    return {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(num_processes),
        "JAX_PROCESS_ID": str(index),
    }


def wait_until(condition, seconds=60.0):
    """Wait until a condition holds, and return whether it held within some seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True
