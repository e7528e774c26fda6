"""Several processes of one run on this machine, each with its own devices."""

import dataclasses
import re
import signal
import socket

import jax
import pytest

from convit_jax.distributed.processes import join_processes
from convit_jax.errors import InputError, RunError
from convit_jax.training import loop
from tests.helpers import read_metrics
from tests.processes import process_variables, wait_until


def wait_for(text, path, seconds=180):
    present = wait_until(lambda: path.exists() and text in path.read_text(), seconds)
    assert present, f"no '{text}' in {path.read_text() if path.exists() else path}"


def own_lines(log):
    """Return the lines in a process's log that are ours: with a time, or the last message."""
    return re.findall(r"^(?:\d\d:\d\d:\d\d |train: ).*", log.read_text(), re.MULTILINE)


COMPARED = ("train/loss", "train/gradient", "train/accuracy", "eval/", "gate/", "nonlocality/")


def metrics_of(workdir, prefixes=COMPARED):
    """Return {(step, name): value}, with the last value of a repeated step."""
    metrics = {}
    for record in read_metrics(workdir):
        for name, value in record.items():
            if name.startswith(prefixes):
                metrics[record["step"], name] = value
    return metrics


def test_two_processes_stop_together_and_another_mesh_resumes_to_the_same_result(
    make_config, workdir, start, tmp_path
):
    """2 x 4 devices in groups of 2, SIGTERM to one process, then one process of one device.

    They have a teacher, which is sharded as the student is.
    """
    teacher = workdir
    config = make_config(
        train_for="40 steps", eval_every="20 steps", log_every="1 steps", ema_decay=0.9,
        checkpoint__every="40 steps", optimizer__accumulate=2, batch_size=32, attention_images=100,
        augment={"rotate": 10.0, "mixup": 0.8, "cutmix": 1.0, "erase": 0.3},
        distill={"teacher": str(teacher), "kind": "soft"},
    )  # fmt: skip
    uninterrupted = tmp_path / "uninterrupted"
    loop.train(config, str(uninterrupted))

    workdir = tmp_path / "stopped"
    sharded = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, fsdp=2))
    processes = start(sharded, workdir, 2)
    wait_for("step 3/40", tmp_path / "0.log")
    processes[1].send_signal(signal.SIGTERM)
    codes = [process.wait(timeout=120) for process in processes]
    log = (tmp_path / "0.log").read_text()
    assert codes == [128 + signal.SIGTERM] * 2, log
    assert "8 device(s) (cpu) in 2 process(es), mesh data=4 x fsdp=2" in log
    assert "global batch 32: 16 a process, 4 a device" in log
    for name in ("parameters", "optimizer state"):
        assert re.search(rf"{name} +\d\d\.\d % sharded, \d+\.\d MB a device", log), log
    (saved,) = [int(path.name) for path in (workdir / "checkpoints").iterdir()]
    assert 3 <= saved < 40
    assert f"stopped by SIGTERM after step {saved} of 40" in log
    assert not own_lines(tmp_path / "1.log")

    outcome = loop.train(config, str(workdir))
    assert outcome.step == 40
    metrics, expected = metrics_of(workdir), metrics_of(uninterrupted)
    assert metrics.keys() == expected.keys()
    assert metrics == pytest.approx(expected, rel=2e-4, abs=1e-6)
    assert metrics[40, "eval/examples"] == 397
    assert 0 < metrics[40, "eval/agreement"] <= 1
    assert metrics[40, "gate/layer_01/head_04"] != metrics[20, "gate/layer_01/head_04"]
    stalls = metrics_of(workdir, ("checkpoint/stall_seconds",))
    assert {step for step, _ in stalls} >= {saved, 40}
    assert all(0 < seconds < 60 for seconds in stalls.values())


def test_ctrl_c_to_one_of_two_processes_stops_both_with_a_checkpoint(make_config, start, tmp_path):
    config = make_config(
        train_for="100000 steps", eval_every="100000 steps", log_every="1 steps",
        checkpoint__every="100000 steps", batch_size=32,
    )  # fmt: skip
    processes = start(config, tmp_path / "run", 2)
    wait_for("step 3/", tmp_path / "0.log")
    processes[1].send_signal(signal.SIGINT)
    codes = [process.wait(timeout=120) for process in processes]
    assert codes == [128 + signal.SIGTERM] * 2, (tmp_path / "1.log").read_text()
    (saved,) = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert f"stopped by SIGTERM after step {saved} of" in (tmp_path / "0.log").read_text()


def test_a_killed_run_resumes_with_another_number_of_processes(make_config, start, tmp_path):
    """One process, then two, each killed with SIGKILL, then two that finish."""
    config = make_config(
        train_for="30 steps", eval_every="15 steps", log_every="1 steps", ema_decay=0.9,
        checkpoint__every="6 steps", optimizer__accumulate=2, batch_size=32,
        augment={"rotate": 10.0, "mixup": 0.8, "cutmix": 1.0, "erase": 0.3},
    )  # fmt: skip
    uninterrupted, workdir = tmp_path / "uninterrupted", tmp_path / "killed"
    loop.train(config, str(uninterrupted))
    saved = 0
    for num_processes, step in ((1, 9), (2, 18)):
        processes = start(config, workdir, num_processes)
        wait_for(f"step {step}/30", tmp_path / "0.log")
        for process in processes:
            process.kill()
            process.wait()
        log = (tmp_path / "0.log").read_text()
        assert f"{4 * num_processes} device(s) (cpu) in {num_processes} process(es)" in log
        assert not saved or f"resuming after step {saved} from" in log
        saved = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
        assert 6 <= saved < 30
    last = start(config, workdir, 2)
    logs = [tmp_path / f"{index}.log" for index in range(2)]
    assert [p.wait(timeout=120) for p in last] == [0, 0], [log.read_text() for log in logs]
    assert f"resuming after step {saved} from" in logs[0].read_text()

    metrics, expected = metrics_of(workdir), metrics_of(uninterrupted)
    assert metrics.keys() == expected.keys()
    assert metrics == pytest.approx(expected, rel=2e-4, abs=1e-6)
    assert metrics[30, "eval/examples"] == 397


def test_a_process_that_dies_ends_the_others_with_a_message(make_config, start, tmp_path):
    config = make_config(
        train_for="100000 steps", eval_every="100000 steps", log_every="1 steps",
        checkpoint__every="100000 steps",
    )  # fmt: skip
    first, second = start(config, tmp_path / "run", 2)
    wait_for("step 2/", tmp_path / "0.log")
    second.kill()
    assert first.wait(timeout=60) != 0
    assert "another task died" in (tmp_path / "0.log").read_text()


@pytest.mark.parametrize(
    "variables",
    [
        {"JAX_PROCESS_ID": "1"},
        {"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "2"},
        {"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"},
        *(
            {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": index}
            for address, index in (("host", "0"), (":1", "0"), ("host:port", "0"), ("host:1", "2"))
        ),
    ],
)
def test_incomplete_or_invalid_variables_are_an_input_error(variables, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"expected JAX_COORDINATOR_ADDRESS=HOST:PORT"):
        join_processes()


JOIN_UNDER_LAUNCHERS = """
import os
from convit_jax.errors import InputError
from convit_jax.distributed.processes import join_processes

for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"):
    os.environ[name] = "4"
    try:
        join_processes()
    except InputError as error:
        print(error)
    del os.environ[name]
join_processes()
print("single process")
"""


def test_undetected_launchers_of_several_processes_are_an_input_error(run_python):
    """Such as Open MPI 5, under which there would be four separate runs."""
    *errors, last = run_python("-c", JOIN_UNDER_LAUNCHERS, check=True).stdout.splitlines()
    for name, line in zip(("OMPI_COMM_WORLD_", "PMI_", "SLURM_STEP_NUM_"), errors, strict=True):
        assert re.match(rf"{name}\w+=4: .* expected JAX_COORDINATOR_ADDRESS=HOST:PORT", line)
    assert last == "single process"


@pytest.fixture
def joined(monkeypatch):
    """A function of environment variables that returns JAX's initialisations and settings."""
    from convit_jax.distributed import processes

    for name in (
        *processes._CLUSTER_VARIABLES,
        "SLURM_LOCALID",
        "SLURM_NTASKS",
        "CUDA_VISIBLE_DEVICES",
    ):
        monkeypatch.delenv(name, raising=False)

    def join(environment):
        calls, settings = [], {}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(jax.distributed, "initialize", lambda **kw: calls.append(kw))
        monkeypatch.setattr(jax.config, "update", settings.__setitem__)
        join_processes()
        return calls, settings

    return join


@pytest.mark.parametrize(
    "environment",
    [
        # An allocation's shell or `srun -n1`, whatever the size of the allocation.
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "node[1-4]",
         "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "1"},
        {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911", "OMPI_COMM_WORLD_SIZE": "1",
         "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "TPU_WORKER_HOSTNAMES": "localhost",
         "TPU_WORKER_ID": "0"},
    ],
)  # fmt: skip
def test_one_process_in_a_cluster_joins_nothing(environment, joined):
    """It has all its GPUs, and needs neither a reachable address nor an answer of Kubernetes."""
    assert joined(environment) == ([], {})


@pytest.mark.parametrize(
    ("environment", "every_gpu"),
    [
        ({"SLURM_NTASKS": "8", "SLURM_STEP_NUM_NODES": "2"}, False),  # one process per GPU
        ({"SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "2"}, True),  # one per node
        ({"SLURM_NTASKS": "8", "SLURM_STEP_NUM_NODES": "2", "CUDA_VISIBLE_DEVICES": "3"}, True),
        ({"SLURM_NTASKS": "8", "SLURM_STEP_NUM_NODES": "2", "CUDA_VISIBLE_DEVICES": "0,1"}, False),
        ({"SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "2", "JAX_LOCAL_DEVICE_IDS": "1"}, False),
    ],
)
def test_the_gpus_of_a_process_under_slurm(environment, every_gpu, joined):
    (call,), settings = joined(environment | {"SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "0"})
    assert not {"num_processes", "cluster_detection_method"} & call.keys()
    assert settings == (dict.fromkeys(VISIBLE, "all") if every_gpu else {})


VISIBLE = ("jax_cuda_visible_devices", "jax_rocm_visible_devices")


def test_with_all_variables_set_kubernetes_is_not_queried(joined):
    (call,), _ = joined(
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JAX_COORDINATOR_ADDRESS": "host:1",
         "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
    )  # fmt: skip
    assert call["cluster_detection_method"] == "deactivate"


def test_the_processes_of_several_hosts_of_a_slice_join(joined):
    for hosts in ({"TPU_WORKER_HOSTNAMES": "a,b"},
                  {"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}):  # fmt: skip
        calls, _ = joined(hosts | {"KUBERNETES_SERVICE_HOST": "10.0.0.1"})
        assert len(calls) == 1


@pytest.mark.parametrize(
    ("published", "message"),
    [(None, "another process is gone, or cannot be reached: UNKNOWN: Gloo all-reduce failed"),
     ("process 1: no space", "ended, since another process failed: process 1: no space")],
)  # fmt: skip
def test_a_failure_caused_by_another_process_is_explained(published, message, monkeypatch):
    from convit_jax.distributed import processes

    class Client:
        def blocking_key_value_get(self, name, milliseconds):
            if published is None:
                raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: no such key")
            return published

    monkeypatch.setattr(processes.distributed.global_state, "client", Client())
    monkeypatch.setattr(processes, "_GRACE_SECONDS", 60.0)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(RunError, match=message), processes.ending_all_on_failure():
        raise jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed: Connection reset")


IN_AN_INDEXED_JOB = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}


def test_a_pod_of_an_indexed_job_without_the_kubernetes_package(joined):
    with pytest.raises(InputError, match=r"JOB_COMPLETION_INDEX=1: .* the package kubernetes"):
        joined(IN_AN_INDEXED_JOB)


def test_an_error_of_kubernetes_is_reported_in_one_sentence(run_python, tmp_path):
    """With a fake package that raises the error of the real one without a token."""
    (tmp_path / "kubernetes.py").write_text(
        "class config:\n"
        "    def load_incluster_config():\n"
        "        raise LookupError('Service host/port is not set.\\nMore')\n"
    )
    arguments = ("train.py", "--config=configs/digits.py", f"--workdir={tmp_path / 'run'}")
    result = run_python(*arguments, **IN_AN_INDEXED_JOB, PYTHONPATH=str(tmp_path))
    assert result.returncode == 1, result.stderr
    assert result.stderr.splitlines()[-1] == (
        "train: the other processes cannot be reached: Service host/port is not set. (expected "
        "because of KUBERNETES_SERVICE_HOST=10.0.0.1, JOB_COMPLETION_INDEX=1)"
    )


def test_an_unreachable_coordinator_ends_the_run(run_python):
    program = (
        "from convit_jax.distributed import processes\n"
        "processes._SECONDS_UNTIL_NOTICE = 0.5\n"
        "processes.join_processes(timeout_seconds=2)\n"
        "print('joined')\n"
    )
    with socket.socket() as probe:  # holds a port without a server
        probe.bind(("localhost", 0))
        variables = process_variables(1, 2, probe.getsockname()[1])
        result = run_python("-c", program, **variables)
    assert result.returncode != 0
    assert "joined" not in result.stdout
    assert "DEADLINE_EXCEEDED" in result.stderr
    assert "waiting for the other processes (JAX_COORDINATOR_ADDRESS=localhost:" in result.stderr
