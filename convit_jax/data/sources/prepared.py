"""Lookup of prepared TFDS datasets on disk by name.

Datasets are opened from their files alone. TFDS's code for a dataset, if there is any, only decides
between several prepared versions or configs, and supplies names for error messages.
"""

import dataclasses
import difflib
import logging
import re
from collections.abc import Iterable, Sequence

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.utils import file_utils

from convit_jax.errors import InputError, nearest, some
from convit_jax.system.paths import is_directory, user_path

log = logging.getLogger(__name__)

NAME_FORMAT = "tfds:NAME[/CONFIG][:VERSION]:SPLIT[:DATA_DIR]"
# Colons inside the brackets of a slice belong to the split.
_SPLIT = re.compile(r"(?:\[[^\]]*\]|\([^)]*\)|[^:])*")
_VERSION = re.compile(r"\d+\.(\d+|\*)\.(\d+|\*)")


@dataclasses.dataclass(frozen=True)
class PreparedName:
    """The parts of `tfds:NAME[/CONFIG][:VERSION]:SPLIT[:DATA_DIR]`; "" for each that is omitted."""

    dataset: str
    config: str
    version: str
    split: str
    data_dir: str

    @classmethod
    def parse(cls, text: str) -> "PreparedName":
        """Parse the part of a name after `tfds:`."""
        first, _, remainder = text.partition(":")
        dataset, _, config = first.partition("/")
        version, _, after_version = remainder.partition(":")
        if _VERSION.fullmatch(version):
            remainder = after_version
        else:
            version = ""
        split, data_dir = parse_split(remainder)
        return cls(dataset, config, version, split, data_dir)

    def __str__(self) -> str:
        """Return NAME or NAME/CONFIG."""
        return "/".join(filter(None, (self.dataset, self.config)))


def parse_split(text: str) -> tuple[str, str]:
    """Separate `SPLIT[:DATA_DIR]`; the split may be a slice with colons, as in `train[10:20]`."""
    match = _SPLIT.match(text)
    assert match is not None  # the pattern matches the empty string
    return match[0], text[match.end() :].removeprefix(":")


def prepared_builder(name: PreparedName) -> tfds.core.DatasetBuilder:
    """Return a read-only builder for the prepared dataset.

    Raises:
        InputError: nothing of that name is prepared, or the name is ambiguous.
    """
    data_dirs = _data_dirs(name.data_dir)
    variants = [variant for root in data_dirs for variant in _find_variants(root, name.dataset)]
    if not variants:
        raise InputError(_not_prepared_message(name, data_dirs))
    builder_class = _builder_class(name.dataset)
    config = _choose_config(name, variants, builder_class)
    variants = [variant for variant in variants if variant.config == config]
    return tfds.builder_from_directory(_choose_version(name, variants, builder_class).path)


@dataclasses.dataclass(frozen=True)
class _Variant:
    """A prepared version of a dataset, or of one of its configs ("" if it has none)."""

    config: str
    version: str
    path: epath.Path

    @property
    def version_numbers(self) -> tuple[int, ...]:
        return tuple(map(int, self.version.split(".")))


def _data_dirs(data_dir: str) -> list[epath.Path]:
    """Return the directories to search: the one that is given, or TFDS's defaults.

    Raises:
        InputError: the given directory does not exist.
    """
    if not data_dir:
        return [user_path(root) for root in file_utils.list_data_dirs()]
    root = user_path(data_dir)
    if not is_directory(root):
        raise InputError(f"no directory '{data_dir}', expected {NAME_FORMAT}")
    return [root]


def _find_variants(root: epath.Path, dataset: str) -> list[_Variant]:
    """Return the prepared variants of a dataset: NAME/VERSION or NAME/CONFIG/VERSION."""
    if not dataset or not (root / dataset).is_dir():
        return []
    variants = []
    for path in (root / dataset).iterdir():
        if _is_version(path):
            variants.append(_Variant("", path.name, path))
        elif path.is_dir():
            variants += [_Variant(path.name, p.name, p) for p in path.iterdir() if _is_version(p)]
    return variants


def _is_version(path: epath.Path) -> bool:
    has_version_name = re.fullmatch(r"\d+\.\d+\.\d+", path.name)
    return bool(has_version_name) and (path / "dataset_info.json").exists()


def _builder_class(dataset: str) -> type[tfds.core.DatasetBuilder] | None:
    """Return TFDS's code for a dataset, or None: prepared data can be read without it."""
    try:
        return tfds.builder_cls(dataset)
    except (tfds.core.DatasetNotFoundError, ImportError):
        return None


def _choose_config(
    name: PreparedName,
    variants: Sequence[_Variant],
    builder_class: type[tfds.core.DatasetBuilder] | None,
) -> str:
    """Return the config that is named, or else TFDS's default or the only one prepared.

    Raises:
        InputError: the named config is not prepared, or none is named and there are several.
    """
    configs = sorted({variant.config for variant in variants})
    if name.config in configs:
        return name.config
    known_configs: list[str] = []
    default = None
    if builder_class is not None and builder_class.builder_configs:
        known_configs = list(builder_class.builder_configs)
        default = builder_class.DEFAULT_BUILDER_CONFIG_NAME or known_configs[0]
    if name.config in known_configs:
        raise InputError(
            f"config '{name.config}' of {name.dataset} is not prepared, only "
            f"{_join(configs)}; run `tfds build {name.dataset}/{name.config}`"
        )
    if name.config:
        raise InputError(_unknown_config_message(name, {*configs, *known_configs}))
    if default in configs:
        return default
    if len(configs) > 1:
        raise InputError(
            f"several configs of {name.dataset} are prepared: name one of "
            f"{_join(f'tfds:{name.dataset}/{config}:SPLIT' for config in configs)}"
        )
    log.info("%s: using the only prepared config, '%s'", name.dataset, configs[0])
    return configs[0]


def _unknown_config_message(name: PreparedName, configs: Iterable[str]) -> str:
    configs = list(filter(None, configs))
    hint = nearest(name.config, configs) if configs else f"expected tfds:{name.dataset}:SPLIT"
    return f"{name.dataset} has no config '{name.config}': {hint}"


def _choose_version(
    name: PreparedName,
    variants: Sequence[_Variant],
    builder_class: type[tfds.core.DatasetBuilder] | None,
) -> _Variant:
    """Return the version that is named, or else that of TFDS's code, or else the newest.

    Raises:
        InputError: the named version is not prepared.
    """
    newest_first = sorted(variants, key=lambda variant: variant.version_numbers, reverse=True)
    versions = [variant.version for variant in newest_first]
    if name.version:
        pattern = re.compile(re.escape(name.version).replace(r"\*", r"\d+"))
        chosen = next((v for v in newest_first if pattern.fullmatch(v.version)), None)
        if chosen is None:
            raise InputError(
                f"version {name.version} of {name} is not prepared, only {_join(versions)}"
            )
        return chosen
    default = str(builder_class.VERSION) if builder_class and builder_class.VERSION else None
    chosen = next((v for v in newest_first if v.version == default), newest_first[0])
    others = [version for version in versions if version != chosen.version]
    if default and chosen.version != default:
        log.info("%s: using version %s; TFDS's default is %s", name, chosen.version, default)
    elif others:
        log.info("%s: using version %s; also prepared: %s", name, chosen.version, _join(others))
    return chosen


def _not_prepared_message(name: PreparedName, data_dirs: Sequence[epath.Path]) -> str:
    """Say why a dataset is not available: it is unknown to TFDS, or known but not prepared."""
    known = set(tfds.list_builders(with_community_datasets=False))
    if name.dataset in known:
        configs = tfds.builder_cls(name.dataset).builder_configs
        if name.config and name.config not in configs:
            return _unknown_config_message(name, configs)
        directories = " and ".join(str(root / name.dataset) for root in data_dirs)
        return (
            f"nothing is prepared in {directories}; run "
            f"`tfds build {name} --file_format=array_record` or name its DATA_DIR"
        )
    prepared = {p.name for root in data_dirs if root.is_dir() for p in root.iterdir() if p.is_dir()}
    prepared -= {"downloads"}
    close = difflib.get_close_matches(name.dataset.lower(), {*known, *prepared}, n=1, cutoff=0.6)
    if close:
        return f"TFDS knows no dataset '{name.dataset}', did you mean '{close[0]}'?"
    directories = " and ".join(map(str, data_dirs))
    hint = f"; prepared in {directories}: {_join(prepared)}" if prepared else ""
    return f"TFDS knows no dataset '{name.dataset}', and none of that name is prepared{hint}"


def _join(names: Iterable[str]) -> str:
    """Join the first few names, in alphabetical order."""
    return some(sorted(names), 8)
