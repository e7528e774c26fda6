"""`study.json` in a study's directory: its models, so that different studies are not mixed."""

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

# Keys that each cell sets, and keys and sections that change no result. All others must stay the
# same.
_SET_BY_CELLS = ("seed", "keep_budget", "data.fraction")
_WITHOUT_EFFECT = (
    "log_every",
    "profile_at",
    "eval_batch_size",
    "attention_images",
    "data.num_workers",
    "data.prefetch_batches",
    "mesh.",
    "checkpoint.",
)
# Keys (or prefixes) that all models share, to see the same images equally often.
_SHARED = ("data.", "train_for", "batch_size")


def check_comparable(configs: Mapping[str, Config]) -> None:
    """Check that all models are trained on the same data for the same duration.

    Raises:
        InputError: their configs differ in data or duration, set a fraction, or end early.
    """
    (first_name, first), *others = configs.items()
    for name, config in configs.items():
        if config.data.fraction != 1.0:
            raise InputError(
                f"config.data.fraction={config.data.fraction:g} of '{name}': a study sets it "
                "itself, from --fractions"
            )
        if config.early_stopping.patience:
            raise InputError(
                f"config.early_stopping.patience={config.early_stopping.patience} of '{name}': "
                "expected 0, as a study trains all models for the same number of images"
            )
    for name, other in others:
        for key, before, after, _ in differences(first, other):
            if key.startswith(_SHARED) and not key.startswith(_WITHOUT_EFFECT):
                raise InputError(
                    f"'{first_name}' has config.{key}={before!r} and '{name}' {after!r}: all "
                    "models of a study need the same data and duration"
                )


def open_study(directory: str, configs: Mapping[str, Config], write: bool) -> dict[str, Config]:
    """Return the models of a study: those in its directory first, then new ones.

    Args:
        directory: directory of the study; `study.json` is the first file written there.
        configs: config of each requested model by name.
        write: create the directory and write `study.json`; otherwise only read.

    Raises:
        InputError: the directory cannot be used, or it holds a study with other settings.
    """
    if "://" in directory:
        raise InputError(
            f"--out={directory}: workers exclude each other by file locks: expected a local or "
            "mounted directory"
        )
    path = pathlib.Path(directory)
    saved = _read(path)
    for name in filter(configs.__contains__, saved):
        for key, before, after, _ in differences(saved[name], configs[name]):
            if key not in _SET_BY_CELLS and not key.startswith(_WITHOUT_EFFECT):
                raise InputError(
                    f"--out={directory} holds another study: '{name}' has config.{key}={before!r} "
                    f"there, {after!r} now; choose another --out"
                )
    models = saved | dict(configs)
    try:
        check_comparable(models)
    except InputError as error:
        if saved:
            raise InputError(f"--out={directory} holds another study: {error}") from error
        raise
    if write and models.keys() != saved.keys():
        # The saved configs win: settings without effect may differ.
        described = {name: dataclasses.asdict(saved.get(name, models[name])) for name in models}
        text = json.dumps(described, indent=2)
        output_directory(directory, "--out")
        write_whole(path / _FILE, text + "\n")
    return models


def cell_directory(directory: str, name: str) -> pathlib.Path:
    """Return the workdir of a cell."""
    return pathlib.Path(directory) / _CELLS / name


def cell_directories(directory: str) -> list[pathlib.Path]:
    """Return the workdirs of all cells that have been started."""
    return sorted(pathlib.Path(directory, _CELLS).glob("*/"))


def _read(path: pathlib.Path) -> dict[str, Config]:
    """Return the models of the study in a directory; none if the directory is new or empty."""
    file = path / _FILE
    with boundary(f"--out={path}"):
        is_study = file.exists()
    if not is_study:
        if path.exists() and not path.is_dir():
            raise InputError(f"--out={path} cannot be used as a directory: it is a file")
        names = sorted(p.name for p in path.iterdir()) if path.exists() else []
        # A worker that is just starting may have a temporary file there.
        names = [name for name in names if not name.startswith(f".{_FILE}")]
        if names:
            raise InputError(
                f"--out={path} holds other files ({', '.join(names[:3])}): expected a new or "
                "empty directory, or that of a study"
            )
        return {}
    try:
        return {name: resolve(values) for name, values in json.loads(file.read_text()).items()}
    except (ValueError, AttributeError, OSError) as error:
        raise InputError(f"{file} does not describe a study: {error}") from error
