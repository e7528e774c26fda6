"""Several processes of one program, each with devices of its own."""

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
from jax._src import distributed  # the public part has no way to send a word
from jax.experimental import multihost_utils

from convit_jax.console.screen import Screen
from convit_jax.data import health
from convit_jax.errors import InputError, RunError, first_line

_ADDRESS, _COUNT, _INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"

# Where launchers say how many processes they started: Open MPI, MPICH and its kin, Slurm. The
# innermost first: mpirun works inside a Slurm job, not the other way round.
_STARTED = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
# Where Google Cloud names the hosts of a slice, in pods of GKE and in TPU notebooks.
_SLICE_HOSTS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
# Kubernetes' in every pod, and in the pods of an indexed Job.
_POD, _POD_INDEX = "KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"
# All that can make JAX look for other processes, in the order in which it is told.
_CLAIMS = (
    *(_ADDRESS, _COUNT, _INDEX, "OMPI_MCA_orte_hnp_uri", *_STARTED, "SLURM_STEP_NODELIST"),
    *(*_SLICE_HOSTS, "TPU_WORKER_ID", "MEGASCALE_NUM_SLICES", _POD, _POD_INDEX),
)

_SECONDS_IN_SILENCE = 10.0


def join_processes(heartbeat_seconds: int = 60, timeout_seconds: int = 300) -> None:
    """Joins the other processes of this program, where there are any; to be called before JAX runs.

    JAX finds out about Cloud TPU, GKE, Slurm and Open MPI 4 by itself. Elsewhere the environment
    tells: JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES, JAX_PROCESS_ID.
    One process alone, in a Slurm allocation or in a pod, too, joins nothing and has all devices.

    Args:
        heartbeat_seconds: how long a process may not be heard of before JAX's coordination service
            ends the others, saying so: they would wait for it for ever.
        timeout_seconds: how long the others are waited for at the beginning; then JAX ends this
            process, saying so. Whoever waits says within seconds for whom.

    Raises:
        InputError: the environment tells some of the three or what they cannot be, or a launcher
            started several processes of which JAX does not know how they find each other.
        RunError: the others cannot be reached: better than each doing all the work alone.
    """
    told = {name: os.environ[name] for name in (_ADDRESS, _COUNT, _INDEX) if name in os.environ}
    if told and not _makes_sense(told):
        raise InputError(
            f"the environment has {', '.join(f'{k}={v}' for k, v in told.items())}: expected "
            f"{_ADDRESS}=HOST:PORT, {_COUNT}=N and {_INDEX}=0 to N-1, or none of them"
        )
    if not told and _is_alone():
        return
    arguments: dict[str, Any] = {}
    if told:
        arguments = {"num_processes": int(told[_COUNT]), "process_id": int(told[_INDEX])}
        if _POD in os.environ:  # nothing is to be asked of the cluster, which may not answer
            arguments["cluster_detection_method"] = "deactivate"
    try:
        with _waiting_told():
            jax.distributed.initialize(
                **arguments,
                heartbeat_timeout_seconds=heartbeat_seconds,
                initialization_timeout=timeout_seconds,
            )
    except Exception as error:  # whatever the launcher's environment makes JAX raise
        # What JAX raises where it knows of no cluster, and nothing was told: one process.
        if not told and "coordinator_address should be defined" in str(error):
            _check_alone()
            return
        claims = _claims()
        raise RunError(
            f"the other processes cannot be reached: {first_line(error)}"
            + (f" (that there are others say {claims})" if claims else "")
        ) from error
    if _has_its_gpus_alone():
        for name in ("jax_cuda_visible_devices", "jax_rocm_visible_devices"):
            jax.config.update(name, "all")


def _is_alone() -> bool:
    """Whether what the environment says of a cluster is true and concerns one process alone.

    JAX would join a cluster of one, at an address that need not be reachable and with one GPU of
    several; or ask Kubernetes about a pod that is no part of a Job, and raise what that answers.

    Raises:
        InputError: a pod of an indexed Job, whose others JAX has no means to find.
    """
    for name in _STARTED:
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
            f"{_claims()}: a pod of an indexed Job, of which JAX finds the others by the package "
            f"kubernetes, which is not installed; expected that, or {_ADDRESS}=HOST:PORT, "
            f"{_COUNT}=N and {_INDEX}, or no {_POD_INDEX} for one process alone"
        )
    return _POD_INDEX not in os.environ


def _has_its_gpus_alone() -> bool:
    """Whether Slurm started one process a node, or shows each the GPU that is its own.

    Of the GPUs that a process of Slurm's sees JAX takes the one of its number on the node: right
    where there are as many processes, and all of them see all.
    """
    if "SLURM_LOCALID" not in os.environ or "JAX_LOCAL_DEVICE_IDS" in os.environ:
        return False
    one_a_node = os.environ.get("SLURM_NTASKS") == os.environ.get("SLURM_STEP_NUM_NODES", "")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return one_a_node or (visible != "" and "," not in visible)


def _claims() -> str:
    """The variables in the environment that say that this process is one of several."""
    return ", ".join(f"{name}={os.environ[name]}" for name in _CLAIMS if name in os.environ)


@contextlib.contextmanager
def _waiting_told() -> Iterator[None]:
    """Says for whom this process waits, where it waits for more than a few seconds."""

    def tell() -> None:
        print(
            f"waiting for the other processes ({_claims() or 'a TPU slice'}); where there "
            "are none, take these out of the environment",
            file=sys.stderr,
            flush=True,
        )

    timer = threading.Timer(_SECONDS_IN_SILENCE, tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def screen_of_process() -> Screen:
    """What this process shows: the first everything, the others what only they can know."""
    if jax.process_index() == 0:
        return Screen()
    return Screen(only=health.__name__, other_levels=logging.ERROR, is_watched=False)


def of_all_processes(value: bool) -> np.ndarray:
    """What each process has, bool [processes]: every one must ask, and waits for the others."""
    return multihost_utils.process_allgather(np.array(value)).reshape(-1)


# Under this name JAX's coordination service keeps what ended the first process that failed.
_FAILURE = "convit_jax/failure"
_LOOK_EVERY = 1_000  # milliseconds
_OWN_WORDS = 3.0  # seconds; what all find at once, each says by itself
# How JAX says that what all processes compute together failed, by the library or by the status.
_OF_OTHERS = re.compile(r"Gloo|NCCL|^(UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED):")
_LEAVES_LAST = 1.0  # seconds
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
        if isinstance(error, jax.errors.JaxRuntimeError) and _OF_OTHERS.search(str(error)):
            raise RunError(_what_of_the_others(client, error)) from error
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


def _what_of_the_others(client: Any, error: BaseException) -> str:
    """Why what all compute together failed: what another process said, if it could."""
    try:
        words = client.blocking_key_value_get(_FAILURE, _LOOK_EVERY)
    except jax.errors.JaxRuntimeError:
        return f"another process is gone, or cannot be reached: {first_line(error)}"
    return f"ended, since another process failed: {words}"


def _say_farewell(client: Any) -> None:
    """Waits until all processes have heard of the failure: the first keeps the service.

    It leaves last: JAX ends, by SIGABRT, a process whose service goes away before it has left.
    """
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # some may be gone
        client.wait_at_barrier("convit_jax/farewell", _LAST_WORDS)
    if jax.process_index() == 0:
        time.sleep(_LEAVES_LAST)


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
