"""The directory in which the package keeps what it need not find out or fetch twice."""

import os
import pathlib


def cache_directory() -> pathlib.Path:
    """Where what was found out or fetched is kept: `$XDG_CACHE_HOME/convit_jax`."""
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home) / "convit_jax"
