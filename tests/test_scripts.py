"""The shell scripts: shellcheck, and the TPU launcher with a fake `gcloud`.

Tests of the Slurm launcher in a job are in slurm/test_launcher.py; here are its error messages.
"""

import os
import pathlib
import shutil
import subprocess

import pytest
import yaml

from tests.processes import wait_until

TPU = {"PROJECT": "my-project", "ZONE": "us-west4-a", "NAME": "pod", "TYPE": "v5litepod-16"}
WHERE = " --project=my-project --zone=us-west4-a --quiet"
FLAGS = ["--config", "configs/convit_b.py", "--workdir=gs://bucket/b"]

# A fake cloud of one slice. Its state and the workers' files are in $CLOUD, its commands are
# logged in $CLOUD/requests. The commands for the workers are run in $CLOUD/worker.
GCLOUD = r"""#!/usr/bin/env bash
cd "$CLOUD" || exit
echo "$*" | head -n 1 >>requests
state=$(cat state)
case "$3 $4" in
    'queued-resources create') echo PROVISIONING >state ;;
    'queued-resources delete') echo NONE >state; rm -rf worker ;;
    'queued-resources describe')
        [ "$state" != NONE ] || { echo 'ERROR: NOT_FOUND: Resource was not found' >&2; exit 1; }
        if [ "$state" = PROVISIONING ]; then mkdir worker; state=ACTIVE; echo ACTIVE >state; fi
        echo "$state" ;;
    'tpu-vm scp') cp "$5" worker/ ;;
    'tpu-vm ssh')
        for argument; do case $argument in --command=*) command=${argument#*=} ;; esac; done
        [ "$state" = ACTIVE ] || exit 255
        cd worker || exit
        HOME=$PWD PATH=$CLOUD/bin:$PATH bash -c "$command" ;;
    *) echo "gcloud: no such command: $*" >&2; exit 2 ;;
esac
"""
# A fake uv: it creates an environment whose Python runs the next line of $CLOUD/script.
UV = r"""#!/usr/bin/env bash
[ "$1" = venv ] || exit 0
mkdir -p .venv/bin
printf '%s\n' '#!/usr/bin/env bash' 'echo "$JAX_COMPILATION_CACHE_DIR $*" >>"$CLOUD/trained"' \
    'next=$(head -n 1 "$CLOUD/script")' 'sed -i 1d "$CLOUD/script"' 'eval "$next"' >.venv/bin/python
chmod +x .venv/bin/python
"""


@pytest.fixture
def launch(repository, tmp_path):
    """A function that runs the launcher with arguments and variables; $CLOUD is `tmp_path`."""
    pip = '#!/bin/sh\nmkdir -p ~/.local/bin && cp "$CLOUD/uv" ~/.local/bin\n'
    programs = {"gcloud": GCLOUD, "bin/python3": pip, "uv": UV}
    for name, text in programs.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    (tmp_path / "state").write_text("NONE\n")

    def run(*arguments, script=(), **variables):
        # In one go, because a worker that was just started may be reading the earlier one.
        (tmp_path / "script.new").write_text("\n".join(script) + "\n")
        (tmp_path / "script.new").replace(tmp_path / "script")
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path), "POLL": "0.05",
            "TMPDIR": str(tmp_path), "CLOUD": str(tmp_path), **TPU, **variables,
        }  # fmt: skip
        return subprocess.run(
            [repository / "scripts/tpu.sh", *arguments], env=environment, capture_output=True,
            text=True, check=False, timeout=30,
        )  # fmt: skip

    return run


def requests(cloud):
    """Return the verbs of the commands to the cloud, except status checks."""
    lines = (cloud / "requests").read_text().splitlines()
    return [
        line.split()[3] for line in lines if "describe" not in line and "--worker=0" not in line
    ]


def test_scripts_pass_shellcheck(repository):
    if not shutil.which("shellcheck"):
        pytest.skip("no shellcheck: pip install -r requirements-dev.txt")
    scripts = sorted(repository.glob("scripts/*.sh"))
    assert len(scripts) >= 4
    result = subprocess.run(
        ["shellcheck", "--external-sources", *scripts], cwd=repository, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout


QUEUED = "gcloud compute tpus queued-resources"
SSH = "gcloud compute tpus tpu-vm ssh pod"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["create"],
            [f"{QUEUED} create pod --node-id=pod --accelerator-type=v5litepod-16 "
             f"--runtime-version=v2-alpha-tpuv5-lite{WHERE}"],
        ),
        (
            ["create", "--spot"],
            [f"{QUEUED} create pod --node-id=pod --accelerator-type=v5litepod-16 "
             f"--runtime-version=v2-alpha-tpuv5-lite --spot{WHERE}"],
        ),
        (
            ["status"],
            [f"{QUEUED} describe pod '--format=value(state.state)'{WHERE}", f"{SSH} --worker=0 "],
        ),
        (
            ["setup"],
            ["git archive --output=", "gcloud compute tpus tpu-vm scp /",
             f" pod:convit_jax.tar.gz --worker=all{WHERE}", f"{SSH} --worker=all '--command=",
             "-r requirements.txt"],
        ),
        (
            ["train", *FLAGS, "--config.train_for=3 epochs"],
            [f"{SSH} --worker=all '--command=",
             " .venv/bin/python train.py --config configs/convit_b.py --workdir=gs://bucket/b "
             "'\\''--config.train_for=3 epochs'\\'' >>train.log"],
        ),
        (["logs"], [f"{SSH} --worker=0 '--command=tail -n 100 -F convit_jax/train.log'{WHERE}"]),
        (["stop"], [f"{SSH} --worker=all '--command=kill -TERM "]),
        (["delete"], [f"{QUEUED} delete pod --force{WHERE}"]),
        (
            ["run", *FLAGS],
            [f"{QUEUED} create pod ", f"{QUEUED} describe ", "tpu-vm scp ", " train.py --config",
             f"{QUEUED} delete pod --force"],
        ),
    ],
    ids=lambda value: " ".join(value[:2]) if value[0] in ("create", "run") else value[0][:8],
)  # fmt: skip
def test_a_dry_run_prints_the_commands_and_runs_none(arguments, expected, launch, tmp_path):
    result = launch("--dry-run", *arguments)
    assert result.returncode == 0, result.stderr
    position = -1
    for part in expected:
        position = result.stdout.find(part, position + 1)
        assert position >= 0, f"'{part}' is missing or out of order in {result.stdout}"
    assert not (tmp_path / "requests").exists()
    assert not list(tmp_path.glob("*.tar.gz"))


@pytest.mark.parametrize(
    ("kind", "version"),
    [
        ("v4-128", "tpu-ubuntu2204-base"),
        ("v5litepod-256", "v2-alpha-tpuv5-lite"),
        ("v5p-128", "v2-alpha-tpuv5"),
        ("v6e-256", "v2-alpha-tpuv6e"),
    ],
)
def test_the_runtime_version_follows_from_the_type(kind, version, launch):
    output = launch("create", "--dry-run", TYPE=kind).stdout
    assert f"--accelerator-type={kind} --runtime-version={version} " in output
    output = launch("create", "--dry-run", TYPE=kind, VERSION="another", DISK="imagenet").stdout
    assert "--runtime-version=another " in output
    disk = "projects/my-project/zones/us-west4-a/disks/imagenet"
    assert f" --data-disk=source={disk},mode=read-only " in output


@pytest.mark.parametrize(
    ("arguments", "variables", "sentence"),
    [
        ([], {}, "expected one of create status setup train logs stop delete run"),
        (["staus"], {}, "no command 'staus': did you mean 'status'?"),
        (["xyz"], {}, "no command 'xyz': expected one of create status"),
        (["create"], {"ZONE": ""}, "ZONE is not set: expected PROJECT ZONE NAME TYPE"),
        (["create"], {"TYPE": "v5e-8"}, "TYPE=v5e-8: did you mean 'v5litepod-8'?"),
        (["create"], {"TYPE": "h100-8"}, "TYPE=h100-8: expected v4-N, v5litepod-N, v5p-N or v6e-N"),
        (["stop", "--now"], {}, "stop does not accept '--now'"),
        (["train", "--config=c.py"], {}, "expected --workdir=gs://BUCKET/DIRECTORY among"),
        (["run", "--workdir", "/tmp/w"], {}, "--workdir=/tmp/w is deleted with the slice"),
    ],
)
def test_wrong_arguments_are_one_sentence_and_code_2(
    arguments, variables, sentence, launch, tmp_path
):
    result = launch(*arguments, **variables)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"tpu.sh: {sentence}")
    assert not (tmp_path / "requests").exists()


def test_the_help_names_every_command_and_variable(launch):
    result = launch("--help")
    assert result.returncode == 0
    words = "create status setup train logs stop delete run PROJECT TYPE VERSION DISK CACHE RETRIES"
    assert set(words.split()) <= set(result.stdout.split())


def test_run_resumes_after_preemptions_and_deletes_the_slice(launch, tmp_path):
    """A preemption without warning, then SIGTERM on a slice that stays, then the end."""
    preempted = 'echo SUSPENDED >"$CLOUD/state"; exec sleep 5'
    result = launch("run", "--spot", *FLAGS, "--config.train_for=3 epochs",
                    script=[preempted, "exit 143", "exit 0"],
                    CACHE="gs://bucket/compiled")  # fmt: skip
    assert result.returncode == 0, result.stderr
    verbs = ["create", "scp", "ssh", "ssh"]  # setup is one ssh, train another
    assert requests(tmp_path) == [*verbs, "delete", *verbs, "ssh", "delete"]
    trained = (tmp_path / "trained").read_text().splitlines()
    flags = f"{' '.join(FLAGS)} --config.train_for=3 epochs"
    assert trained == [f"gs://bucket/compiled train.py {flags}"] * 3
    for message in ("pod is SUSPENDED", "pod is ACTIVE 143", "finished"):
        assert f"tpu.sh: {message}" in result.stderr
    assert (tmp_path / "state").read_text() == "NONE\n"


def test_run_stops_after_wrong_input_and_keeps_the_slice(launch, tmp_path):
    result = launch("run", *FLAGS, script=["echo 'train: no such key' >&2; exit 2"])
    assert result.returncode == 2
    assert requests(tmp_path) == ["create", "scp", "ssh", "ssh"]
    assert "pod is kept and costs money" in result.stderr
    log = (tmp_path / "worker/convit_jax/train.log").read_text()
    assert log == "train: no such key\n"


def test_run_tolerates_a_limited_number_of_failures(launch, tmp_path):
    result = launch("run", *FLAGS, script=["exit 1", "exit 134", "exit 1"], RETRIES="2")
    assert result.returncode == 1
    assert len((tmp_path / "trained").read_text().splitlines()) == 3
    assert "delete" not in requests(tmp_path)


def test_run_can_be_restarted_during_training(launch, tmp_path):
    """It neither creates another slice nor starts train.py twice."""
    assert launch("create").returncode == 0
    assert launch("status").stdout == "ACTIVE new\n"
    assert launch("setup").returncode == 0
    assert launch("status").stdout == "ACTIVE ready\n"
    script = ['for i in {1..600}; do [ ! -e "$CLOUD/go" ] || exit 0; sleep 0.1; done; exit 1']
    assert launch("train", *FLAGS, script=script).returncode == 0
    assert wait_until(lambda: launch("status", script=script).stdout == "ACTIVE running\n")
    assert launch("train", *FLAGS).stdout == "already training\n"
    (tmp_path / "gcloud").write_text(
        GCLOUD + 'case "$*" in *worker=0*) touch "$CLOUD/go" ;; esac\n'
    )
    result = launch("run", *FLAGS)
    assert result.returncode == 0, result.stderr
    assert "pod is ACTIVE running" in result.stderr
    assert requests(tmp_path).count("create") == 1
    assert len((tmp_path / "trained").read_text().splitlines()) == 1


def test_run_stops_if_the_cloud_cannot_be_queried(launch, tmp_path):
    (tmp_path / "gcloud").write_text("#!/bin/sh\necho 'ERROR: no active account' >&2; exit 1\n")
    result = launch("run", *FLAGS)
    assert result.returncode == 1
    assert result.stderr == "ERROR: no active account\n"


def test_stop_ends_train_py_with_the_code_on_which_it_is_restarted(launch, tmp_path):
    for command in ("create", "status", "setup"):
        assert launch(command).returncode == 0
    launch("train", *FLAGS, script=["trap 'exit 143' TERM; touch \"$CLOUD/up\"; sleep 3 & wait"])
    assert wait_until((tmp_path / "up").exists)
    assert launch("stop").returncode == 0
    assert wait_until(lambda: launch("status").stdout == "ACTIVE 143\n")


JOB = {
    "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1",
}  # fmt: skip
ONE = JOB | {"SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS": "1"}
ARRAY = ONE | {
    "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "2",
    "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_MAX": "9",
}  # fmt: skip
GPUS = JOB | {"SLURM_NTASKS": "6", "SLURM_NTASKS_PER_NODE": "3", "SLURM_GPUS_ON_NODE": "4"}
RUN = ["--config=c.py", "--workdir", "/shared/run"]
STUDY = ["study", "--config=c.py", "--out=/shared/study"]


@pytest.fixture
def launch_job(repository, tmp_path):
    """A function that runs the Slurm launcher with flags and variables, without Slurm."""
    python = tmp_path / "environment/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexit 1\n")  # its JAX has no GPU support
    python.chmod(0o755)

    def run(*flags, cwd=repository, **variables):
        environment = {"PATH": "/usr/bin:/bin", "VENV": str(tmp_path / "environment"), **variables}
        return subprocess.run(
            [repository / "scripts/slurm.sh", *flags], env=environment, cwd=cwd, timeout=30,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


@pytest.mark.parametrize(
    ("flags", "variables", "sentence"),
    [
        ([], JOB, "expected flags of train.py, or study and its flags"),
        (["studdy", *RUN], JOB, "no command 'studdy': did you mean 'study'?"),
        (["evaluate"], JOB, "no command 'evaluate': expected flags of train.py, or study and its"),
        (["--config=c.py"], JOB, "expected --workdir=DIRECTORY, on a file system of all nodes"),
        (["--config=c.py", "--workdir"], JOB, "expected --workdir=DIRECTORY, on a file"),
        (["study", "--workdir=/shared/run"], ONE, "expected --out=DIRECTORY, on a file system"),
        (
            RUN, JOB | {"VENV": "/nowhere"},
            "no environment in VENV=/nowhere: create one (docs/slurm",
        ),
        (RUN, {}, "not in a Slurm job: sbatch [OPTIONS]"),
        (RUN, JOB | {"SLURM_STEP_ID": "0"}, "it calls srun itself: expected sbatch, not srun"),
        (RUN, JOB | {"SLURM_NTASKS": "8"}, "8 tasks are not 2 node(s) times 1: expected --nodes"),
        (
            RUN, ARRAY,
            "--array would train one --workdir several times: expected it only before study",
        ),
        (STUDY, JOB, "a worker of a study is one process, not 2: expected --nodes=1"),
        (STUDY, ARRAY, "--array has 2 tasks between 3 and 9, so some shares would not be trained"),
        (RUN, GPUS, "4 GPUs do not divide among 3 processes: expected --gpus-per-node"),
        (
            RUN, JOB | {"SLURM_GPUS_PER_TASK": "1"},
            "SLURM_GPUS_PER_TASK=1 hides GPUs from processes, which select their own",
        ),
        (
            RUN, JOB | {"SLURM_GPUS_ON_NODE": "4"},
            "the JAX in VENV=/",
        ),
    ],
)  # fmt: skip
def test_a_wrong_job_is_one_sentence_and_code_2(flags, variables, sentence, launch_job):
    result = launch_job(*flags, **variables)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"slurm.sh: {sentence}")


def test_a_job_must_be_submitted_from_the_checkout(launch_job, tmp_path):
    result = launch_job(*RUN, cwd=tmp_path, **JOB)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(
        f"slurm.sh: {tmp_path} is not the checkout: submit from it, or "
    )


def test_the_help_of_the_slurm_launcher(launch_job):
    for flag in ("--help", "-h"):
        result = launch_job(flag)
        assert (result.returncode, result.stderr) == (0, "")
        words = (
            "sbatch --nodes=2 --gpus-per-node=4 --ntasks-per-node=4 --array=1-N study scancel VENV"
        )
        assert set(words.split()) <= set(result.stdout.split())


def test_the_kubernetes_manifest_is_consistent(repository):
    text = pathlib.Path(repository / "scripts/gke.yaml").read_text()
    service, job = yaml.safe_load_all(text)
    spec = job["spec"]
    pod = spec["template"]["spec"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert pod["restartPolicy"] == "Never"  # required by podFailurePolicy
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"]
    (container,) = pod["containers"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert container["resources"]["requests"]["google.com/tpu"] == chips
    shape = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    width, height = map(int, shape.split("x"))
    assert spec["completions"] * chips == width * height
    rules = {rule["action"]: rule["onExitCodes"]["values"]
             for rule in spec["podFailurePolicy"]["rules"] if "onExitCodes" in rule}  # fmt: skip
    assert rules == {"FailJob": [2], "Ignore": [143]}
    command = container["command"]
    assert command[:2] == ["python", "train.py"]
    assert (repository / command[command.index("--config") + 1]).exists()
