"""Checks that all processes of a run use the same workdir, data and teacher."""

import hashlib
import secrets

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from convit_jax import data
from convit_jax.distributed.processes import all_gather_flag
from convit_jax.errors import InputError, boundary
from convit_jax.weights.teachers import Teacher

_TOKEN = ".token"


def check_same_workdir(directory: epath.Path) -> None:
    """Check that the workdir is one directory shared by all processes, not one per host.

    Process 0 writes a random token into it, which every process must then read there.

    Raises:
        InputError: in every process, if any process cannot read the token.
    """
    if jax.process_count() == 1:
        return
    path = directory / _TOKEN
    token = np.frombuffer(secrets.token_bytes(8), np.uint8)
    with boundary(str(path), "cannot be written", chosen=True):
        if jax.process_index() == 0:
            path.write_text(token.tobytes().hex())
    token = multihost_utils.broadcast_one_to_all(token)
    with boundary(str(path)):
        text = path.read_text() if path.exists() else ""
    matches = all_gather_flag(text == bytes(token).hex())
    if jax.process_index() == 0:
        path.unlink()
    if not matches.all():
        others = ", ".join(map(str, np.flatnonzero(~matches)))
        raise InputError(
            f"--workdir={directory} is not one directory for all processes: the file that process "
            f"0 wrote there is missing for process {others}; expected a file system that all "
            "processes share, or gs://"
        )


def check_same_data(source: data.Source, key: str) -> None:
    """Check that all processes have the same examples under one dataset name.

    Args:
        source: this process's examples.
        key: the config key to name in errors.

    Raises:
        InputError: in every process, if the number, classes, files or subset of examples differ.
    """
    if jax.process_count() == 1:
        return
    counts = np.array([len(source), len(source.class_names)], np.int32)
    chosen = b"" if source.indices is None else source.indices.tobytes()
    contents = ("\0".join(source.class_names), source.examples.identity(), chosen)
    digests = [_sha256(content) for content in contents]
    counts, digests = multihost_utils.process_allgather((counts, np.stack(digests)))
    for index in range(1, len(counts)):
        differs = (digests[index] != digests[0]).any(axis=-1)
        if (counts[index] == counts[0]).all() and not differs.any():
            continue
        describe = "{:,} examples of {:,} classes".format
        sizes = f"process 0 has {describe(*counts[0])}, process {index} {describe(*counts[index])}"
        kinds = ("other class names", "other files", "another subset of them")
        differences = ", ".join(kind for kind, other in zip(kinds, differs, strict=True) if other)
        raise InputError(
            f"config.{key}={source.name} is not the same for all processes: {sizes}"
            f"{': ' if differences else ''}{differences}; expected the same copy on every host"
        )


def check_same_teacher(teacher: Teacher | None) -> None:
    """Check that all processes have opened the same teacher.

    Raises:
        InputError: in every process, if any process has another one.
    """
    if teacher is None or jax.process_count() == 1:
        return
    digests = multihost_utils.process_allgather(_sha256(teacher.digest))
    others = np.flatnonzero((digests != digests[0]).any(axis=1))
    if len(others):
        raise InputError(
            f"config.distill.teacher={teacher.name} is not the same for all processes: process "
            f"{', '.join(map(str, others))} has another one than process 0; expected the same copy "
            "on every host"
        )


def _sha256(content: str | bytes) -> np.ndarray:
    """Return the SHA-256 digest, uint8 [32]."""
    if isinstance(content, str):
        content = content.encode(errors="surrogateescape")
    return np.frombuffer(hashlib.sha256(content).digest(), np.uint8)
