"""What a study is, as `study.json` in its directory: so that no other study is mixed into it."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping

from convit_jax.config import Config, resolve
from convit_jax.config.typed import differences
from convit_jax.errors import InputError, boundary
from convit_jax.system.paths import output_directory
from convit_jax.system.whole_file import write_whole

_FILE = "study.json"
_CELLS = "cells"

# What a cell says itself, and what changes no result. Everything else must be as it was.
_OF_A_CELL = ("seed", "keep_budget", "data.fraction")
_WITHOUT_EFFECT = (
    "log_every",
    "profile_at",
    "eval_batch_size",
    "attention_images",
    "data.num_workers",
    "data.prefetch_batches",
    "mesh.fsdp",
    "checkpoint.every",
    "checkpoint.keep_latest",
    "checkpoint.keep_best",
)
# What makes models comparable: the same images, and as many of them seen.
_SHARED = ("data.", "train_for", "batch_size")


def check_comparable(configs: Mapping[str, Config]) -> None:
    """Refuses models that are not trained on the same data for as long.

    Raises:
        InputError: their configs differ in it, or have a fraction of their own.
    """
    (first, one), *others = configs.items()
    for name, config in configs.items():
        if config.data.fraction != 1.0:
            raise InputError(
                f"config.data.fraction={config.data.fraction:g} of '{name}': a study sets it "
                "itself, by --fractions"
            )
    for name, other in others:
        for key, before, after, _ in differences(one, other):
            if key.startswith(_SHARED) and key not in _WITHOUT_EFFECT:
                raise InputError(
                    f"'{first}' has config.{key}={before!r} and '{name}' {after!r}: the models of "
                    "a study have the same data and budget"
                )


def open_study(directory: str, configs: Mapping[str, Config], write: bool) -> dict[str, Config]:
    """The models of a study, those of its directory first; others are added to it.

    Args:
        directory: of the study; `study.json` is written there before anything else.
        configs: of the models that are asked for, by name.
        write: whether to make the directory and write, or only look.

    Raises:
        InputError: the directory cannot be used, or it holds a study that these contradict.
    """
    if "://" in directory:
        raise InputError(
            f"--out={directory}: workers keep out of each other's way by locks, which need a file "
            "system; name a local directory or a mounted one"
        )
    path = pathlib.Path(directory)
    kept = _read(path)
    for name in filter(configs.__contains__, kept):
        for key, before, after, _ in differences(kept[name], configs[name]):
            if key not in _OF_A_CELL + _WITHOUT_EFFECT:
                raise InputError(
                    f"--out={directory} holds another study: '{name}' has config.{key}={before!r} "
                    f"there, {after!r} now; choose another --out"
                )
    together = kept | dict(configs)
    try:
        check_comparable(together)
    except InputError as error:
        if kept:
            raise InputError(f"--out={directory} holds another study: {error}") from error
        raise
    if write and together.keys() != kept.keys():
        described = {name: dataclasses.asdict(c) for name, c in (dict(configs) | kept).items()}
        text = json.dumps({name: described[name] for name in together}, indent=2)
        output_directory(directory, "--out")
        write_whole(path / _FILE, lambda file: file.write_text(text + "\n"))
    return together


def cell_directory(directory: str, name: str) -> pathlib.Path:
    """The workdir of a cell."""
    return pathlib.Path(directory) / _CELLS / name


def cell_directories(directory: str) -> list[pathlib.Path]:
    """The workdirs of all cells that were begun."""
    return sorted(pathlib.Path(directory, _CELLS).glob("*/"))


def _read(path: pathlib.Path) -> dict[str, Config]:
    """The models of the study in a directory; none where there is nothing yet."""
    file = path / _FILE
    with boundary(f"--out={path}"):
        is_study = file.exists()
    if not is_study:
        if path.exists() and not path.is_dir():
            raise InputError(f"--out={path} cannot be used as a directory: it is a file")
        there = sorted(p.name for p in path.iterdir()) if path.exists() else []
        # A worker that is just beginning may have a draft there.
        there = [name for name in there if not name.startswith(f".{_FILE}")]
        if there:
            raise InputError(
                f"--out={path} holds other things ({', '.join(there[:3])}): expected a new or "
                "empty directory, or a study's"
            )
        return {}
    try:
        found = json.loads(file.read_text())
        return {name: resolve(values) for name, values in found.items()}
    except (ValueError, AttributeError, OSError) as error:
        raise InputError(f"{file} does not describe a study: {error}") from error
