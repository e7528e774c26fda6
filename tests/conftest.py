"""The environment of every test: the CPU and temporary directories."""

import contextlib
import http.server
import importlib.metadata
import logging
import os
import pathlib
import subprocess
import sys
import tempfile
import threading

import pytest

_SCRATCH = tempfile.TemporaryDirectory(prefix="convit-jax-tests-")

# Set before JAX or TFDS is imported anywhere, for these tests and the processes they start.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["TFDS_DATA_DIR"] = f"{_SCRATCH.name}/tfds"  # so that the digits are prepared anew
os.environ["XDG_CACHE_HOME"] = f"{_SCRATCH.name}/cache"
# Tests compile a lot and compute little: compile quickly, and each program once.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{_SCRATCH.name}/compiled"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # XLA's older code generator for CPUs compiles in three quarters of the time; 0.12 has only the
    # newer one.
    flags = "--xla_cpu_use_fusion_emitters=false", os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = " ".join(filter(None, flags))


@pytest.fixture(scope="session")
def tfds_data_dir():
    """The directory in which TFDS writes."""
    return pathlib.Path(os.environ["TFDS_DATA_DIR"])


@pytest.fixture(scope="session")
def digits():
    """The training digits."""
    from convit_jax.data import open_source

    return open_source("digits:train")


@pytest.fixture(scope="session")
def repository():
    """The checkout."""
    return pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="session")
def reference_data():
    """Small arrays computed by independent implementations."""
    return pathlib.Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def run_python(repository):
    """Return a function that runs Python in the checkout and returns the completed process.

    Its keywords are `cwd`, options of `subprocess.run` and environment variables, without those
    that are None.
    """

    def run(*arguments, cwd=repository, check=False, timeout=None, **variables):
        variables = {k: v for k, v in (os.environ | variables).items() if v is not None}
        return subprocess.run(
            [sys.executable, *map(str, arguments)], cwd=cwd, env=variables, capture_output=True,
            text=True, check=check, timeout=timeout,
        )  # fmt: skip

    return run


@pytest.fixture
def package_log(caplog):
    """Capture the package's log, which a run does not propagate to the root logger."""
    logger = logging.getLogger("convit_jax")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.fixture
def run_command(capsys):
    """Return a function that runs a command in this process: its exit code and its output.

    Its arguments are the command's module and the command line.
    """
    from convit_jax.console import command_line

    def run(module, *arguments):
        capsys.readouterr()  # discard earlier output
        name = module.__name__.rpartition(".")[2]
        code = command_line.run(name, lambda: module.main([str(a) for a in arguments]))
        return code, capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def make_config():
    """Return a function of overrides that makes the config of a very short run."""
    from convit_jax.config import resolve

    def make(**overrides):
        values = {
            "train_for": "12 steps",
            "batch_size": 16,
            "eval_batch_size": 128,
            "eval_every": "6 steps",
            "log_every": "3 steps",
            "attention_images": 0,
            "model": {"num_heads": 4, "head_dim": 4, "depth": 2, "gpsa_layers": 1,
                      "patch_size": 4, "in_channels": 1, "drop_path_rate": 0.2},
            "data": {"image_size": (8,), "mean": (0.3,), "std": (0.4,)},
            "augment": {"rotate": 10.0},
            "optimizer": {"learning_rate": 1e-2, "learning_rate_batch": 16, "warmup": "2 steps"},
            "checkpoint": {"every": "4 steps"},
        }  # fmt: skip
        for name, value in overrides.items():
            section, _, key = name.rpartition("__")
            (values[section] if section else values)[key] = value
        return resolve(values)

    return make


@pytest.fixture(scope="session")
def workdir(make_config, tmp_path_factory):
    """The workdir of two training steps on the digits, with a running average."""
    from convit_jax.training import loop

    directory = tmp_path_factory.mktemp("workdir")
    loop.train(
        make_config(train_for="2 steps", ema_decay=0.5, eval_every="2 steps"), str(directory)
    )
    return directory


@pytest.fixture
def restoring_raises(monkeypatch):
    """A function that makes restoring onto a run's devices raise an error."""
    import jax
    import orbax.checkpoint as ocp

    restore = ocp.PyTreeCheckpointHandler.restore

    def patch(error):
        def broken_restore(handler, directory, args):
            if isinstance(jax.tree.leaves(args.item)[0].sharding, jax.sharding.NamedSharding):
                raise error
            return restore(handler, directory, args=args)  # into memory

        monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", broken_restore)

    return patch


@pytest.fixture
def serve(monkeypatch, tmp_path):
    """Return a function that starts a server with a handler; downloads get a temporary cache.

    The handler records the requests in `server.requests`.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with contextlib.ExitStack() as stack:

        def start(handler):
            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
            stack.enter_context(server)
            server.requests = []
            server.address = f"http://127.0.0.1:{server.server_port}"
            thread = threading.Thread(target=server.serve_forever)
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            thread.start()
            return server

        yield start
