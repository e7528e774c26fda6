"""Several processes of one program, each with its own devices."""

import contextlib
import importlib.util
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src import distributed  # no public API sends a message
from jax.experimental import multihost_utils

from convit_jax.console.screen import Screen
from convit_jax.data import health
from convit_jax.errors import InputError, RunError, first_line

_ADDRESS, _COUNT, _INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"

# Where launchers state the number of processes: Open MPI, MPICH and its derivatives, Slurm. The
# innermost launcher is first: mpirun runs inside a Slurm job, not the other way round.
_LAUNCHER_COUNTS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
# Where Google Cloud lists the hosts of a slice, in pods of GKE and in TPU notebooks.
_SLICE_HOSTS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
# Kubernetes sets the first in every pod, and the second in the pods of an indexed Job.
_POD, _POD_INDEX = "KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"
# All variables that can make JAX look for other processes, in the order of messages about them.
_CLUSTER_VARIABLES = (
    *(_ADDRESS, _COUNT, _INDEX, "OMPI_MCA_orte_hnp_uri", *_LAUNCHER_COUNTS, "SLURM_STEP_NODELIST"),
    *(*_SLICE_HOSTS, "TPU_WORKER_ID", "MEGASCALE_NUM_SLICES", _POD, _POD_INDEX),
)

_SECONDS_UNTIL_NOTICE = 10.0


def join_processes(heartbeat_seconds: int = 60, timeout_seconds: int = 300) -> None:
    """Join the other processes of this program, if there are any; call it before using JAX.

    JAX detects Cloud TPU, GKE, Slurm and Open MPI 4. Elsewhere the environment must set
    JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID. A single
    process, even in a Slurm allocation or in a pod, joins nothing and has all devices.

    Args:
        heartbeat_seconds: how long a process may be silent before JAX's coordination service ends
            the others with a message; they would wait for it for ever.
        timeout_seconds: how long to wait for the others at the start before JAX ends this process
            with a message. A waiting process logs within seconds what it waits for.

    Raises:
        InputError: the environment sets only some of the three or invalid values, or a launcher
            started several processes that JAX cannot detect.
        RunError: the others cannot be reached; otherwise each would do all the work alone.
    """
    settings = {name: os.environ[name] for name in (_ADDRESS, _COUNT, _INDEX) if name in os.environ}
    if settings and not _are_valid(settings):
        raise InputError(
            f"the environment has {', '.join(f'{k}={v}' for k, v in settings.items())}: expected "
            f"{_ADDRESS}=HOST:PORT, {_COUNT}=N and {_INDEX}=0 to N-1, or none of them"
        )
    if not settings and _is_single_process():
        return
    arguments: dict[str, Any] = {}
    if settings:
        arguments = {"num_processes": int(settings[_COUNT]), "process_id": int(settings[_INDEX])}
        if _POD in os.environ:  # do not query the cluster, which may not answer
            arguments["cluster_detection_method"] = "deactivate"
    try:
        with _announcing_wait():
            jax.distributed.initialize(
                **arguments,
                heartbeat_timeout_seconds=heartbeat_seconds,
                initialization_timeout=timeout_seconds,
            )
    except Exception as error:  # JAX's cluster detection may raise anything
        # JAX raises this if it detects no cluster and nothing is set: there is one process.
        if not settings and "coordinator_address should be defined" in str(error):
            _check_not_launched()
            return
        variables = _cluster_variables()
        raise RunError(
            f"the other processes cannot be reached: {first_line(error)}"
            + (f" (expected because of {variables})" if variables else "")
        ) from error
    if _has_exclusive_gpus():
        for name in ("jax_cuda_visible_devices", "jax_rocm_visible_devices"):
            jax.config.update(name, "all")


def _is_single_process() -> bool:
    """Return whether the environment is that of a cluster with this one process.

    JAX would join a cluster of one, at an address that may be unreachable and with one of several
    GPUs; or query Kubernetes about a pod that belongs to no Job, and raise the answer.

    Raises:
        InputError: in a pod of an indexed Job if JAX lacks the package to find the others.
    """
    for name in _LAUNCHER_COUNTS:
        if name in os.environ:
            return os.environ[name] == "1"
    for name in _SLICE_HOSTS:
        if name in os.environ:
            several_slices = os.environ.get("MEGASCALE_NUM_SLICES", "1") != "1"
            return "," not in os.environ[name] and not several_slices
    if _POD not in os.environ:
        return False
    if _POD_INDEX in os.environ and importlib.util.find_spec("kubernetes") is None:
        raise InputError(
            f"{_cluster_variables()}: a pod of an indexed Job, in which JAX finds the other pods "
            "with the package kubernetes, which is not installed; expected that package, or "
            f"{_ADDRESS}=HOST:PORT, {_COUNT}=N and {_INDEX}, or no {_POD_INDEX} for one process"
        )
    return _POD_INDEX not in os.environ


def _has_exclusive_gpus() -> bool:
    """Return whether Slurm started one process per node, or gave each process its own GPU.

    Under Slurm, JAX uses the visible GPU with the process's index on the node. That is right only
    if there are as many processes as GPUs and each sees all of them.
    """
    if "SLURM_LOCALID" not in os.environ or "JAX_LOCAL_DEVICE_IDS" in os.environ:
        return False
    one_per_node = os.environ.get("SLURM_NTASKS") == os.environ.get("SLURM_STEP_NUM_NODES", "")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return one_per_node or (visible != "" and "," not in visible)


def _cluster_variables() -> str:
    """Return the environment variables according to which there are several processes."""
    names = [name for name in _CLUSTER_VARIABLES if name in os.environ]
    return ", ".join(f"{name}={os.environ[name]}" for name in names)


@contextlib.contextmanager
def _announcing_wait() -> Iterator[None]:
    """Print which processes the block waits for, once it takes more than a few seconds."""

    def announce() -> None:
        print(
            f"waiting for the other processes ({_cluster_variables() or 'a TPU slice'}); if there "
            "are none, remove these variables from the environment",
            file=sys.stderr,
            flush=True,
        )

    timer = threading.Timer(_SECONDS_UNTIL_NOTICE, announce)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def process_screen() -> Screen:
    """Return this process's screen: the first shows everything, the others their own problems."""
    if jax.process_index() == 0:
        return Screen()
    return Screen(only=health.__name__, other_levels=logging.ERROR, is_watched=False)


def all_gather_flag(value: bool) -> np.ndarray:
    """Return the values of all processes, bool [processes]; all must call it, and it blocks."""
    return multihost_utils.process_allgather(np.array(value)).reshape(-1)


# The key under which JAX's coordination service stores the message of the first failed process.
_FAILURE_KEY = "convit_jax/failure"
_POLL_MILLISECONDS = 1_000
# An error that all processes have at once is reported by each itself within this time.
_GRACE_SECONDS = 3.0
# JAX's errors when a computation of all processes fails, by library or by status.
_COLLECTIVE_ERROR = re.compile(r"Gloo|NCCL|^(UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED):")
_BARRIER_MILLISECONDS = 10_000
_COORDINATOR_EXIT_SECONDS = 1.0


@contextlib.contextmanager
def ending_all_on_failure() -> Iterator[None]:
    """End all processes if the block fails in one, each with a message that names it.

    Otherwise the others would wait for it at the next step, and it for them at its exit. A failing
    process publishes its message through the coordination service; a thread of each other process
    polls for it and ends the process.
    """
    client = distributed.global_state.client
    if client is None or jax.process_count() == 1:
        yield
        return
    finished = threading.Event()
    watcher = threading.Thread(target=_exit_on_peer_failure, args=(client, finished), daemon=True)
    watcher.start()
    try:
        yield
    except BaseException as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and _COLLECTIVE_ERROR.search(str(error)):
            raise RunError(_peer_failure_message(client, error)) from error
        message = f"process {jax.process_index()}: {first_line(error)}"
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another failed before
            client.key_value_set(_FAILURE_KEY, message)
        raise
    finally:
        finished.set()
        watcher.join()  # it uses the client, which JAX shuts down at exit


def exit_process(code: int) -> NoReturn:
    """End this process; after a failure, without JAX's wait for the other processes."""
    client = distributed.global_state.client
    if client is None or jax.process_count() == 1 or code in (0, 128 + signal.SIGTERM):
        sys.exit(code)
    _wait_for_peers(client)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _exit_on_peer_failure(client: Any, finished: threading.Event) -> None:
    while not finished.is_set():
        try:
            message = client.blocking_key_value_get(_FAILURE_KEY, _POLL_MILLISECONDS)
        except jax.errors.JaxRuntimeError:
            continue  # no failure yet; JAX itself ends a process that has lost its coordinator
        if finished.wait(_GRACE_SECONDS):
            return
        print(f"train: ended, since another process failed: {message}", file=sys.stderr, flush=True)
        _wait_for_peers(client)
        os._exit(1)


def _peer_failure_message(client: Any, error: BaseException) -> str:
    """Explain a failed collective by the message of the process that failed, if it left one."""
    try:
        message = client.blocking_key_value_get(_FAILURE_KEY, _POLL_MILLISECONDS)
    except jax.errors.JaxRuntimeError:
        return f"another process is gone, or cannot be reached: {first_line(error)}"
    return f"ended, since another process failed: {message}"


def _wait_for_peers(client: Any) -> None:
    """Wait until all processes know of the failure, because process 0 hosts the service.

    Process 0 exits last: JAX aborts, with SIGABRT, any process that outlives the service.
    """
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # some processes may be gone
        client.wait_at_barrier("convit_jax/farewell", _BARRIER_MILLISECONDS)
    if jax.process_index() == 0:
        time.sleep(_COORDINATOR_EXIT_SECONDS)


def _are_valid(settings: dict[str, str]) -> bool:
    """Return whether all three variables are set to possible values."""
    if len(settings) < 3 or not settings[_COUNT].isdigit() or not settings[_INDEX].isdigit():
        return False
    is_address = re.fullmatch(r".+:\d{1,5}", settings[_ADDRESS])
    return bool(is_address) and int(settings[_INDEX]) < int(settings[_COUNT])


def _check_not_launched() -> None:
    """Check that no launcher started several processes, each of which would run alone.

    JAX does not detect MPICH, nor Open MPI 5, which no longer sets the variable that JAX reads.

    Raises:
        InputError: a launcher started several processes.
    """
    for name in _LAUNCHER_COUNTS:
        count = os.environ.get(name, "1")
        if count.isdigit() and int(count) > 1:
            raise InputError(
                f"{name}={count}: a launcher started that many processes, and JAX cannot detect "
                f"how they find each other; expected {_ADDRESS}=HOST:PORT, {_COUNT}=N and "
                f"{_INDEX}=0 to N-1 in the environment (see docs/tpu.md)"
            )
