"""The cache: downloads, indices of records, and compiled programs."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator

from convit_jax.system.devices import find_devices
from convit_jax.system.paths import expand_home

_JAX_SETTING = "jax_compilation_cache_dir"


def cache_directory() -> pathlib.Path:
    """Return the directory of cached files: `$XDG_CACHE_HOME/convit_jax`."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(expand_home(home, "XDG_CACHE_HOME")) / "convit_jax"


def keep_compiled_programs() -> None:
    """Let JAX keep the programs that it compiles for an accelerator, to compile each once.

    They are kept in `JAX_COMPILATION_CACHE_DIR` if that is set (gs:// works too), otherwise in
    `compiled` of the cache directory. Call this after the processes have joined. Programs for a CPU
    are not kept: they compile quickly and run on the same processor model only.
    """
    import jax  # noqa: PLC0415  (users of the directory alone need no JAX)

    find_devices()
    directory = jax.config.values[_JAX_SETTING]
    if directory:
        jax.config.update(_JAX_SETTING, expand_home(directory, "JAX_COMPILATION_CACHE_DIR"))
    elif jax.default_backend() != "cpu":
        jax.config.update(_JAX_SETTING, str(cache_directory() / "compiled"))


@contextlib.contextmanager
def compiled_programs_shared() -> Iterator[None]:
    """Do as `keep_compiled_programs`, and keep programs for a CPU within this context.

    Use it in a process that trains several runs: runs that differ only in their data have the same
    programs, which take as long to compile as a small run takes to train.
    """
    import jax  # noqa: PLC0415

    keep_compiled_programs()
    if jax.config.values[_JAX_SETTING]:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="convit-jax-compiled-") as directory:
        jax.config.update(_JAX_SETTING, directory)
        try:
            yield
        finally:
            jax.config.update(_JAX_SETTING, None)
