"""Several processes of one program, each with devices of its own."""

import contextlib
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
from jax._src import distributed  # the public part has no way to send a word

from convit_jax.errors import InputError, RunError, first_line

_ADDRESS, _COUNT, _INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"

# Where launchers say how many processes they started: Open MPI, MPICH and its kin, Slurm.
_STARTED = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")


def join_processes(heartbeat_seconds: int = 60, timeout_seconds: int = 300) -> None:
    """Joins the other processes of this program, where there are any; to be called before JAX runs.

    JAX finds out about Cloud TPU, GKE, Slurm and Open MPI 4 by itself. Elsewhere the environment
    tells: JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES, JAX_PROCESS_ID.

    Args:
        heartbeat_seconds: how long a process may not be heard of before JAX's coordination service
            ends the others, saying so: they would wait for it for ever.
        timeout_seconds: how long the others are waited for at the beginning; then JAX ends this
            process, saying so.

    Raises:
        InputError: the environment tells some of the three or what they cannot be, or a launcher
            started several processes of which JAX does not know how they find each other.
        RunError: the others cannot be reached: better than each doing all the work alone.
    """
    told = {name: os.environ[name] for name in (_ADDRESS, _COUNT, _INDEX) if name in os.environ}
    if told:
        if not _makes_sense(told):
            raise InputError(
                f"the environment has {', '.join(f'{k}={v}' for k, v in told.items())}: expected "
                f"{_ADDRESS}=HOST:PORT, {_COUNT}=N and {_INDEX}=0 to N-1, or none of them"
            )
        arguments = {"num_processes": int(told[_COUNT]), "process_id": int(told[_INDEX])}
    else:
        arguments = {}
    try:
        jax.distributed.initialize(
            **arguments,
            heartbeat_timeout_seconds=heartbeat_seconds,
            initialization_timeout=timeout_seconds,
        )
    except ValueError as error:
        # What JAX raises where it knows of no cluster, and nothing was told: one process.
        if not told and "coordinator_address should be defined" in str(error):
            _check_alone()
            return
        raise RunError(f"the processes cannot be joined: {error}") from error
    except RuntimeError as error:
        line = first_line(error)
        raise RunError(f"the other processes cannot be reached: {line}") from error


# Under this name JAX's coordination service keeps what ended the first process that failed.
_FAILURE = "convit_jax/failure"
_LOOK_EVERY = 1_000  # milliseconds
_OWN_WORDS = 3.0  # seconds; what all find at once, each says by itself
_LAST_WORDS = 10_000  # milliseconds in which all hear of a failure


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """Where one process fails, the others end too, each with a sentence that names it.

    Without this they would wait for it: at the next step, and it for them at its exit. A process
    that fails tells the coordination service; in the others a thread hears of it and ends them.
    """
    client = distributed.global_state.client
    if client is None or jax.process_count() == 1:
        yield
        return
    over = threading.Event()
    watch = threading.Thread(target=_end_with_the_others, args=(client, over), daemon=True)
    watch.start()
    try:
        yield
    except BaseException as error:
        words = f"process {jax.process_index()}: {first_line(error)}"
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another failed before
            client.key_value_set(_FAILURE, words)
        raise
    finally:
        over.set()
        watch.join()  # it uses the client, which JAX takes down at the end


def leave(code: int) -> NoReturn:
    """Ends this process; after a failure of one of several without waiting for the others."""
    client = distributed.global_state.client
    if client is None or jax.process_count() == 1 or code in (0, 128 + signal.SIGTERM):
        sys.exit(code)
    _say_farewell(client)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _end_with_the_others(client: Any, over: threading.Event) -> None:
    while not over.is_set():
        try:
            words = client.blocking_key_value_get(_FAILURE, _LOOK_EVERY)
        except jax.errors.JaxRuntimeError:
            continue  # nothing yet; JAX itself ends a process whose coordinator is gone
        if over.wait(_OWN_WORDS):
            return
        print(f"train: ended, since another process failed: {words}", file=sys.stderr, flush=True)
        _say_farewell(client)
        os._exit(1)


def _say_farewell(client: Any) -> None:
    """Waits until all processes have heard of the failure: the first keeps the service."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # some may be gone
        client.wait_at_barrier("convit_jax/farewell", _LAST_WORDS)


def _makes_sense(told: dict[str, str]) -> bool:
    """Whether all three are there and can be what they are said to be."""
    if len(told) < 3 or not told[_COUNT].isdigit() or not told[_INDEX].isdigit():
        return False
    reachable = re.fullmatch(r".+:\d{1,5}", told[_ADDRESS])
    return bool(reachable) and int(told[_INDEX]) < int(told[_COUNT])


def _check_alone() -> None:
    """Refuses to be one of several processes that know nothing of each other.

    Open MPI 5 no longer tells what JAX looks for, and of MPICH it knows nothing.

    Raises:
        InputError: a launcher says that it started several.
    """
    for name in _STARTED:
        count = os.environ.get(name, "1")
        if count.isdigit() and int(count) > 1:
            raise InputError(
                f"{name}={count}: a launcher started so many processes, of which JAX does not know "
                f"how they find each other; expected {_ADDRESS}=HOST:PORT, {_COUNT}=N and "
                f"{_INDEX}=0 to N-1 in the environment (docs/tpu.md says how)"
            )
