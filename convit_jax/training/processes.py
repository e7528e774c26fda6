"""Several processes of one program, each with devices of its own."""

import os

import jax

from convit_jax.errors import InputError, RunError

_ADDRESS, _COUNT, _INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def join_processes(heartbeat_seconds: int = 60) -> None:
    """Joins the other processes of this program, where there are any; to be called before JAX runs.

    JAX finds out about Cloud TPU, GKE, Slurm and Open MPI by itself. Elsewhere the environment
    tells: JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES, JAX_PROCESS_ID.

    Args:
        heartbeat_seconds: how long a process may not be heard of before JAX's coordination service
            ends the others, saying so: they would wait for it for ever.

    Raises:
        InputError: the environment tells some of the three, or what is no number.
        RunError: the others cannot be reached: better than each doing all the work alone.
    """
    told = {name: os.environ[name] for name in (_ADDRESS, _COUNT, _INDEX) if name in os.environ}
    if told:
        if len(told) < 3 or not told[_COUNT].isdigit() or not told[_INDEX].isdigit():
            raise InputError(
                f"the environment has {', '.join(f'{k}={v}' for k, v in told.items())}: expected "
                f"{_ADDRESS}=HOST:PORT, {_COUNT}=N and {_INDEX}=0 to N-1, or none of them"
            )
        arguments = {"num_processes": int(told[_COUNT]), "process_id": int(told[_INDEX])}
    else:
        arguments = {}
    try:
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=heartbeat_seconds)
    except ValueError as error:
        # What JAX raises where it knows of no cluster, and nothing was told: one process.
        if not told and "coordinator_address should be defined" in str(error):
            return
        raise RunError(f"the processes cannot be joined: {error}") from error
    except RuntimeError as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RunError(f"the other processes cannot be reached: {line}") from error
