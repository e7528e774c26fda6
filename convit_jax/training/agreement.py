"""Whether the processes of a run mean the same: one workdir, and the same data in each."""

import hashlib
import secrets

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from convit_jax import data
from convit_jax.distributed.processes import of_all_processes
from convit_jax.errors import InputError, boundary

_TOKEN = ".token"


def check_same_workdir(directory: epath.Path) -> None:
    """Refuses to go on where the processes' workdirs are of one name and not one directory.

    The first writes a random token into it, which all must then read there.

    Raises:
        InputError: in every process, where some process cannot.
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
        found = path.read_text() if path.exists() else ""
    same = of_all_processes(found == bytes(token).hex())
    if jax.process_index() == 0:
        path.unlink()
    if not same.all():
        others = ", ".join(map(str, np.flatnonzero(~same)))
        raise InputError(
            f"--workdir={directory} is not one directory for all processes: what process 0 wrote "
            f"there is not there for process {others}; expected a file system that all share, or "
            "gs://"
        )


def check_same_data(source: data.Source, key: str) -> None:
    """Refuses to go on where the processes have other examples under one name.

    Args:
        source: this process's.
        key: the config key to name.

    Raises:
        InputError: in every process, where numbers, classes, names or places differ.
    """
    if jax.process_count() == 1:
        return
    counts = np.array([len(source), len(source.class_names)], np.int32)
    chosen = b"" if source.indices is None else source.indices.tobytes()
    contents = ("\0".join(source.class_names), source.examples.identity(), chosen)
    digests = [_sha256(content) for content in contents]
    counts, digests = multihost_utils.process_allgather((counts, np.stack(digests)))
    for index in range(1, len(counts)):
        differ = (digests[index] != digests[0]).any(axis=-1)
        if (counts[index] == counts[0]).all() and not differ.any():
            continue
        has = "{:,} examples of {:,} classes".format
        told = f"process 0 has {has(*counts[0])}, process {index} {has(*counts[index])}"
        kinds = ("other names of classes", "other files", "another part of them")
        what = [kind for kind, is_other in zip(kinds, differ, strict=True) if is_other]
        raise InputError(
            f"config.{key}={source.name} is not the same for all processes: {told}"
            f"{': ' if what else ''}{', '.join(what)}; expected the same copy on every host"
        )


def _sha256(content: str | bytes) -> np.ndarray:
    """Uint8 [32]."""
    if isinstance(content, str):
        content = content.encode(errors="surrogateescape")
    return np.frombuffer(hashlib.sha256(content).digest(), np.uint8)
