"""The devices that JAX computes on."""

import os
from typing import TYPE_CHECKING

from convit_jax.errors import InputError, MachineError, first_line

if TYPE_CHECKING:
    import jax

# Environment variables that select them.
_VARIABLES = ("JAX_PLATFORMS", "XLA_FLAGS", "CUDA_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS")


def platform_of(device: "jax.Device") -> str:
    """Return a device's platform as `jax.export` names it: "cpu", "tpu", "cuda" or "rocm"."""
    if device.platform != "gpu":
        return device.platform
    return "cuda" if "cuda" in device.client.platform_version else "rocm"


def find_devices() -> None:
    """Let JAX find its devices, so that a problem with them is reported before the work begins.

    Call this after the processes have joined.

    Raises:
        InputError: JAX_PLATFORMS names a platform that JAX does not know.
        MachineError: they do not start: no driver, no device, or in use by another program.
    """
    import jax  # noqa: PLC0415  (train.py checks its flags before)

    try:
        jax.devices()
    except Exception as error:
        settings = ", ".join(f"{v}={os.environ[v]}" for v in _VARIABLES if v in os.environ)
        message = f"JAX finds no devices{f' with {settings}' if settings else ''}"
        unknown_platform = "list of known backends" in str(error)
        error_type = InputError if unknown_platform else MachineError
        raise error_type(f"{message}: {first_line(error)}") from error
