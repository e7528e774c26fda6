"""The directory in which the package keeps what it need not find out or fetch twice."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator

from convit_jax.system.devices import find_devices
from convit_jax.system.paths import expand_home


def cache_directory() -> pathlib.Path:
    """Where what was found out or fetched is kept: `$XDG_CACHE_HOME/convit_jax`."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(expand_home(home, "XDG_CACHE_HOME")) / "convit_jax"


def keep_compiled_programs() -> None:
    """Has JAX keep the programs that it compiles for an accelerator, to compile each once.

    In `JAX_COMPILATION_CACHE_DIR` where that is set, a gs:// path too, or else in `compiled` of the
    cache directory. To be called once the processes have joined. Programs for a CPU are not kept:
    they compile quickly and are good on the same processor only.
    """
    import jax  # noqa: PLC0415  (what needs only the directory does without)

    find_devices()
    named = jax.config.jax_compilation_cache_dir
    if named:
        jax.config.update(
            "jax_compilation_cache_dir", expand_home(named, "JAX_COMPILATION_CACHE_DIR")
        )
    elif jax.default_backend() != "cpu":
        jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "compiled"))


@contextlib.contextmanager
def compiled_programs_shared() -> Iterator[None]:
    """As `keep_compiled_programs`, and for a CPU as long as this lasts.

    For a process that trains several runs: those that differ in their data alone have the same
    programs, which take as long to compile as some small runs take to train.
    """
    import jax  # noqa: PLC0415

    keep_compiled_programs()
    if jax.config.jax_compilation_cache_dir:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="convit-jax-compiled-") as directory:
        jax.config.update("jax_compilation_cache_dir", directory)
        try:
            yield
        finally:
            jax.config.update("jax_compilation_cache_dir", None)
