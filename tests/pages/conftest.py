"""A checkout with the files that the pages' commands name, and a `python` that shortens runs."""

import importlib.util
import json
import os
import pathlib
import re
import shlex
import shutil
import socketserver
import subprocess
import sys
import threading

import pytest

from convit_jax.models import Architecture
from tests.field.builders import encode, folder, photograph, write_tar
from tests.field.weight_files import put_into_hub_cache
from tests.fork_commands import fork_server
from tests.helpers import COMPILER_ENVIRONMENT, write_random_weights

IMPORTED = (
    "tensorflow_datasets", "convit_jax.training.loop", "convit_jax.planning",
    "convit_jax.studies.running", "convit_jax.analysis.report", "convit_jax.benchmarks.model",
    "convit_jax.benchmarks.input", "convit_jax.benchmarks.attention",
    "convit_jax.benchmarks.kernel", "convit_jax.weights.exporting", "convit_jax.evaluation.probing",
)  # fmt: skip

# What the pages' placeholders stand for. Nothing is written outside of the checkout.
PLACEHOLDERS = {
    r"\bW\b(?!=)": "W.safetensors",
    r"(?<=runs/mine --data )D\b|(?<=params {15}--data )D\b": "folder:MY/val",
    r"\bD\b": "tfds:imagenet2012:validation",
    r"\bDIR\b": "out",
    r"(?<![\w.])/tmp/": "tmp/",
}
WEIGHTS = Architecture(
    num_heads=4, head_dim=4, depth=4, gpsa_layers=3, patch_size=8, image_size=(16, 16)
)
TEN_CLASSES = "tfds:imagenet2012:train"
SMALL = "model.depth=2", "model.head_dim=4", "data.image_size=32"
BATCHES = "batch_size=8", "eval_batch_size=8"
SHORT = ("train_for=2 steps", "eval_every=2 steps", "checkpoint.every=2 steps",
         "optimizer.warmup=0 steps", "attention_images=4")  # fmt: skip


def shortened(command):
    """Return the flags that make a command short and its model small; later flags win.

    Args:
        command: what follows `python`.
    """
    line = shlex.join(command)
    keys = []
    if re.match(r"train\.py|-m convit_jax\.(study|preview|plan|train)", line) and (
        "--help" not in command
    ):
        keys += SHORT if "preview" not in line and "plan" not in line else ()
        keys += SMALL if re.search(r"configs/(convit|deit)_", line) else ()
        keys += ["model.gpsa_layers=1"] if "configs/convit_" in line else []
        keys += BATCHES if "plan" not in line else ()
        keys += ["batch_size=24"] if "preview" in line else []
        keys += ["batch_size=32"] if "fsdp" in line else []
        if ":fraction" in line:  # a hundredth of some classes would be no image
            keys += ["data.fraction=1"]
        if "profile_at" in line:
            keys += ["train_for=8 steps", "profile_at=1"]
    flags = [f"--config.{key}" for key in keys]
    for pattern, more in {
        r"-m convit_jax\.study": ["--fractions=0.1", "--seeds=1"],
        r"-m convit_jax\.study .*configs/convit_": ["--models=convit_small", "--fractions=1"],
        r"-m convit_jax\.study .*--variants": ["--variants=a,e"],
        r"-m convit_jax\.study .*--gpsa-layers 0,3": ["--gpsa-layers=0,1"],
        # The images here are of ten of ImageNet's classes, those for evaluation of others.
        r".*data\.classes=100": ["--config.data.classes=10", f"--config.data.eval={TEN_CLASSES}"],
        r"-m convit_jax\.benchmark (model|attention|input)": ["--seconds=0.01"],
        r"-m convit_jax\.benchmark (model|attention)": ["--batch-size=2", "--image-size=32"],
        r"-m convit_jax\.embed|-m convit_jax\.evaluate": ["--batch-size=8"],
        r"-m convit_jax\.analyze": ["--count=16"],
        r"scripts/make_photographs": ["--count=200"],
        r"scripts/fuzz": ["--count=1"],
        r"scripts/(mutate|try_pairs)": ["--list"],
    }.items():
        if re.match(pattern, line):
            flags += more
    return flags


def fill(text):
    """Replace the placeholders of a page's command or program by names of the checkout."""
    for pattern, name in PLACEHOLDERS.items():
        text = re.sub(pattern, name, text)
    return text


@pytest.fixture(scope="module")
def fork(repository, checkout):
    """A function that runs Python programs in forks; the package is that of the environment."""
    with fork_server(IMPORTED, checkout, TFDS_DATA_DIR=str(checkout / "tfds")) as run:
        where = subprocess.run(
            [sys.executable, "-c", "import convit_jax; print(convit_jax.__file__)"],
            cwd=checkout / "docs", capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert where.stdout.strip() == str(repository / "convit_jax" / "__init__.py"), (
            f"this environment has another convit_jax: {where.stdout or where.stderr}\n"
            "scripts/test.sh makes one, or: pip install --no-deps --editable ."
        )
        yield run


@pytest.fixture(scope="module")
def python(fork, tmp_path_factory):
    """A directory for PATH, in which `python` runs programs in forks, shortened."""
    directory = tmp_path_factory.mktemp("bin")
    address = str(directory / "socket")

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            request = json.loads(self.rfile.readline())
            request["command"] += shortened(request["command"])
            run = _run_in_a_process if _needs_a_process(request["command"]) else fork
            self.wfile.write(f"{run(**request)}\n".encode())

    client = pathlib.Path(__file__).with_name("python_client.py")
    client = shlex.join([sys.executable, "-S", "-E", str(client), address])
    # The environment has what the pages tell to install; pip would ask its index.
    for name, line in (("python", f'exec {client} "$@"'), ("pip", ":")):
        (directory / name).write_text(f"#!/bin/sh\n{line}\n")
        (directory / name).chmod(0o755)
    with socketserver.UnixStreamServer(address, Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield directory
        server.shutdown()
        thread.join()


def _needs_a_process(command):
    """Whether a program is no file or module, or compiles for TPU."""
    return command[0] == "-c" or command[:2] == ["-m", "convit_jax.plan"]


def _run_in_a_process(command, directory, environment, stdout, stderr):
    """Run Python without the settings of other tests, which the TPU compiler does not know."""
    environment = {k: v for k, v in environment.items() if k not in COMPILER_ENVIRONMENT}
    with open(stdout, "a") as out, open(stderr, "a") as err:  # noqa: PTH123 (descriptors)
        arguments = [sys.executable, *command]
        return subprocess.run(
            arguments, cwd=directory, env=environment, stdout=out, stderr=err, check=False
        ).returncode


@pytest.fixture(scope="module")
def environment(python, checkout):
    """The environment variables of the pages' commands."""
    return os.environ | {
        "PATH": f"{python}:{os.environ['PATH']}",
        "HF_HUB_CACHE": str(checkout / "hub"),
        "HF_HUB_OFFLINE": "1",
        "VENV": str(checkout / "venv"),
    }


@pytest.fixture(scope="module")
def checkout(repository, tmp_path_factory):
    """A checkout that also has the files that the pages' commands name."""
    root = tmp_path_factory.mktemp("pages") / "convit_jax"
    root.mkdir()
    for name in ("configs", "scripts", "tests"):
        shutil.copytree(repository / name, root / name, ignore=shutil.ignore_patterns("data"))
    for name in ("train.py", "requirements.txt", "requirements-dev.txt", "docs/plans.jsonl"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(repository / name, root / name)
    (root / "convit_jax").symlink_to(repository / "convit_jax")
    return root


@pytest.fixture(scope="module")
def run(checkout, environment):
    """A function that runs a command line in the checkout and returns the completed process."""

    def run_in_bash(text):
        return subprocess.run(
            ["bash", "-c", text], cwd=checkout, env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip

    return run_in_bash


@pytest.fixture(scope="module")
def inputs(checkout, run):
    """The files that the pages' commands read, in the checkout."""
    _write_images(checkout)
    _write_imagenet(checkout)
    # An environment that scripts/demo.sh takes for complete.
    (checkout / "venv" / "bin").mkdir(parents=True)
    (checkout / "venv" / "bin" / "activate").touch()
    has_torch = importlib.util.find_spec("torch")
    write_random_weights(WEIGHTS, checkout / "W.safetensors")
    made = run(f"""set -e
        cat requirements.txt requirements.txt | cksum >venv/installed
        python scripts/make_photographs.py photographs --imagenet tfds
        python scripts/make_random_weights.py convit_tiny convit_tiny.safetensors
        {"python -m convit_jax.convert W.safetensors convit_tiny.pth" if has_torch else ""}
        python -m convit_jax.convert W.safetensors convit_tiny.stablehlo
        python -m convit_jax.convert W.safetensors convit_tiny.onnx
        python train.py --config configs/digits.py --workdir runs/convit
        python train.py --config configs/digits.py:deit --workdir runs/deit
        cp -r runs/deit runs/deit_distilled
        python train.py --config configs/finetune.py:data=folder:IMAGES,weights=W.safetensors \\
            --workdir runs/mine""")
    assert made.returncode == 0, made.stdout[-1000:]
    put_into_hub_cache(
        checkout / "hub", "timm/convit_tiny.fb_in1k", checkout / "convit_tiny.safetensors"
    )
    if has_torch:
        import torch

        tensors = torch.load(checkout / "convit_tiny.pth")
        entries = {"state_dict": tensors, "state_dict_ema": tensors}
        torch.save(entries, checkout / "model_best.pth.tar")
    return checkout


def _write_images(root):
    for part, count in (("IMAGES/train", 50), ("IMAGES/validation", 4), ("MY/val", 4)):
        folder(root / part, ("a", "b"), count=count, side=24, mode="RGB")
    for name in ("cat.jpg", "dog.jpg", "photograph.jpg"):
        (root / name).write_bytes(encode(photograph(96, 80), "JPEG"))
    (root / "more").mkdir()
    (root / "tmp").mkdir()
    for name in ("more/c.png", "a.png", "b.png"):
        (root / name).write_bytes(encode(photograph(8, 8, "L"), "PNG"))


def _write_imagenet(root):
    """Write tar shards and a folder with the layout of ImageNet's."""
    image = encode(photograph(), "JPEG")
    (root / "IMAGENET").mkdir()
    for split, count, digits in (("train", 1024, 4), ("validation", 64, 2)):
        for number in range(count):
            members = (f"{number}.jpg", image), (f"{number}.cls", b"%d" % (number % 1000))
            write_tar(root / f"IMAGENET/imagenet1k-{split}-{number:0{digits}d}.tar", members)
    folder(root / "IMAGENET/val", ("n01440764", "n01443537"), count=2, side=24, mode="RGB")
