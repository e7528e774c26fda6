"""The directory in which the package keeps what it need not find out or fetch twice."""

import os
import pathlib


def cache_directory() -> pathlib.Path:
    """Where what was found out or fetched is kept: `$XDG_CACHE_HOME/convit_jax`."""
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home) / "convit_jax"


def keep_compiled_programs() -> None:
    """Has JAX keep the programs that it compiles for an accelerator, to compile each once.

    In `JAX_COMPILATION_CACHE_DIR` where that is set, a gs:// path too, or else in `compiled` of the
    cache directory. To be called once the processes have joined. Programs for a CPU are not kept:
    they compile quickly and are good on the same processor only.
    """
    import jax  # noqa: PLC0415  (what needs only the directory does without)

    if jax.default_backend() != "cpu" and not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "compiled"))
