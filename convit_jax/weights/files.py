"""Reading tensors from files."""

import pathlib

import numpy as np
import safetensors
import safetensors.numpy

from convit_jax.errors import InputError


def read_safetensors(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a .safetensors file by name.

    Raises:
        InputError: the file is not there, or is no whole safetensors file.
    """
    try:
        return safetensors.numpy.load_file(path)
    except FileNotFoundError as error:
        raise InputError(f"no weights at {path}: the file does not exist") from error
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a whole .safetensors file: {error}") from error
