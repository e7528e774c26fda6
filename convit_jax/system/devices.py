"""The devices that JAX computes on."""

import os

from convit_jax.errors import InputError, MachineError, first_line

# What decides which they are.
_VARIABLES = ("JAX_PLATFORMS", "XLA_FLAGS", "CUDA_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS")


def find_devices() -> None:
    """Has JAX find its devices, so that what is wrong with them is told before the work begins.

    To be called once the processes have joined.

    Raises:
        InputError: JAX_PLATFORMS names what JAX does not know.
        MachineError: they do not start: no driver, no device, or another program has it.
    """
    import jax  # noqa: PLC0415  (train.py looks at its flags before)

    try:
        jax.devices()
    except Exception as error:
        told = ", ".join(f"{name}={os.environ[name]}" for name in _VARIABLES if name in os.environ)
        words = f"JAX finds no devices{f' with {told}' if told else ''}: {first_line(error)}"
        unknown = "list of known backends" in str(error)
        raise (InputError if unknown else MachineError)(words) from error
