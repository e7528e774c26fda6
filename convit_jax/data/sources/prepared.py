"""TFDS datasets that lie prepared on a disk: by their name, whatever version or code there is.

They are opened from what lies there. TFDS's code for a dataset, where it has any, is only asked
which of several versions or configs is meant, and what else there would be.
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

FORM = "tfds:NAME[/CONFIG][:VERSION]:SPLIT[:DATA_DIR]"
_SPLIT = re.compile(r"((?:\[[^\]]*\]|\([^)]*\)|[^:])*)(?::(.*))?", re.DOTALL)
_VERSION = re.compile(r"\d+\.(\d+|\*)\.(\d+|\*)")


@dataclasses.dataclass(frozen=True)
class PreparedName:
    """What `tfds:NAME[/CONFIG][:VERSION]:SPLIT[:DATA_DIR]` says.

    Attributes:
        dataset, config, version, split, data_dir: its parts; "" where one is not named.
    """

    dataset: str
    config: str
    version: str
    split: str
    data_dir: str

    @classmethod
    def parse(cls, text: str) -> "PreparedName":
        """The name that stands after `tfds:`."""
        first, _, rest = text.partition(":")
        dataset, _, config = first.partition("/")
        version, _, after = rest.partition(":")
        if _VERSION.fullmatch(version):
            rest = after
        else:
            version = ""
        split, data_dir = cut_split(rest)
        return cls(dataset, config, version, split, data_dir)

    def __str__(self) -> str:
        """The dataset and its config."""
        return "/".join(filter(None, (self.dataset, self.config)))


def cut_split(text: str) -> tuple[str, str]:
    """A split and what stands after its colon: slices, `train[10:20]`, have colons of their own."""
    split, data_dir = _SPLIT.fullmatch(text).groups(default="")
    return split, data_dir


def prepared_builder(name: PreparedName) -> tfds.core.DatasetBuilder:
    """The dataset as it lies there.

    Raises:
        InputError: nothing of that name is prepared, or several things are that it may mean.
    """
    roots = _roots(name.data_dir)
    there = [variant for root in roots for variant in _variants(root, name.dataset)]
    if not there:
        raise InputError(_nothing_prepared(name, roots))
    code = _code(name.dataset)
    config = _choose_config(name, there, code)
    there = [variant for variant in there if variant.config == config]
    chosen = _choose_version(name, there, code)
    return tfds.builder_from_directory(chosen.path)


@dataclasses.dataclass(frozen=True)
class _Variant:
    """A prepared version of a dataset, or of one of its configs ("" where it has none)."""

    config: str
    version: str
    path: epath.Path

    @property
    def age(self) -> tuple[int, ...]:
        return tuple(map(int, self.version.split(".")))


def _roots(data_dir: str) -> list[epath.Path]:
    """Where datasets are looked for: the directory that is named, or TFDS's own.

    Raises:
        InputError: the directory that is named is not there.
    """
    if not data_dir:
        return [user_path(root) for root in file_utils.list_data_dirs()]
    root = user_path(data_dir)
    if not is_directory(root):
        raise InputError(f"no directory '{data_dir}', expected {FORM}")
    return [root]


def _variants(root: epath.Path, dataset: str) -> list[_Variant]:
    """What is prepared of a dataset: NAME/VERSION, or NAME/CONFIG/VERSION."""
    if not dataset or not (root / dataset).is_dir():
        return []
    found = []
    for path in (root / dataset).iterdir():
        if _is_version(path):
            found.append(_Variant("", path.name, path))
        elif path.is_dir():
            found += [_Variant(path.name, p.name, p) for p in path.iterdir() if _is_version(p)]
    return found


def _is_version(path: epath.Path) -> bool:
    is_named_so = re.fullmatch(r"\d+\.\d+\.\d+", path.name)
    return bool(is_named_so) and (path / "dataset_info.json").exists()


def _code(dataset: str) -> type[tfds.core.DatasetBuilder] | None:
    """TFDS's code for a dataset, or None: what is prepared can be read without."""
    try:
        return tfds.builder_cls(dataset)
    except (tfds.core.DatasetNotFoundError, ImportError):
        return None


def _choose_config(
    name: PreparedName, there: Sequence[_Variant], code: type[tfds.core.DatasetBuilder] | None
) -> str:
    """The config that is named, or where none is, the one that TFDS means or the only one.

    Raises:
        InputError: it is not there, or there are several.
    """
    configs = sorted({variant.config for variant in there})
    if name.config in configs:
        return name.config
    own = list(code.builder_configs) if code else []
    if name.config in own:
        raise InputError(
            f"of {name.dataset} the config '{name.config}' is not prepared, only "
            f"{_list(configs)}; run `tfds build {name.dataset}/{name.config}`"
        )
    if name.config:
        raise InputError(_no_config(name, {*configs, *own}))
    default = (code.DEFAULT_BUILDER_CONFIG_NAME or own[0]) if own else None
    if default in configs:
        return default
    if len(configs) > 1:
        raise InputError(
            f"of {name.dataset} several configs are prepared: name one of "
            f"{_list(f'tfds:{name.dataset}/{config}:SPLIT' for config in configs)}"
        )
    log.info("%s: the config '%s' is the one that is prepared", name.dataset, configs[0])
    return configs[0]


def _no_config(name: PreparedName, configs: Iterable[str]) -> str:
    named = list(filter(None, configs))
    hint = nearest(name.config, named) if named else f"expected tfds:{name.dataset}:SPLIT"
    return f"{name.dataset} has no config '{name.config}': {hint}"


def _choose_version(
    name: PreparedName, there: Sequence[_Variant], code: type[tfds.core.DatasetBuilder] | None
) -> _Variant:
    """The version that is named, or where none is, that of TFDS's code or else the newest.

    Raises:
        InputError: the version that is named is not there.
    """
    newest_first = sorted(there, key=lambda variant: variant.age, reverse=True)
    versions = [variant.version for variant in newest_first]
    if name.version:
        pattern = re.compile(re.escape(name.version).replace(r"\*", r"\d+"))
        chosen = next((v for v in newest_first if pattern.fullmatch(v.version)), None)
        if chosen is None:
            raise InputError(
                f"of {name} version {name.version} is not prepared, only {_list(versions)}"
            )
        return chosen
    own = str(code.VERSION) if code and code.VERSION else None
    chosen = next((v for v in newest_first if v.version == own), newest_first[0])
    others = [version for version in versions if version != chosen.version]
    if own and chosen.version != own:
        log.info("%s: version %s is prepared and read, TFDS's own is %s", name, chosen.version, own)
    elif others:
        log.info("%s: version %s; also prepared: %s", name, chosen.version, _list(others))
    return chosen


def _nothing_prepared(name: PreparedName, roots: Sequence[epath.Path]) -> str:
    """Why there is nothing of a dataset: it is unknown, or known and not prepared."""
    known = set(tfds.list_builders(with_community_datasets=False))
    where = " and ".join(map(str, roots))
    if name.dataset in known:
        where = " and ".join(str(root / name.dataset) for root in roots)
        own = tfds.builder_cls(name.dataset).builder_configs
        if name.config and name.config not in own:
            return _no_config(name, own)
        config = f"/{name.config}" if name.config else ""
        return (
            f"nothing is prepared in {where}; run "
            f"`tfds build {name.dataset}{config} --file_format=array_record` or name its DATA_DIR"
        )
    there = {p.name for root in roots if root.is_dir() for p in root.iterdir() if p.is_dir()}
    there -= {"downloads"}
    close = difflib.get_close_matches(name.dataset.lower(), {*known, *there}, n=1, cutoff=0.6)
    if close:
        return f"TFDS knows no dataset '{name.dataset}', did you mean '{close[0]}'?"
    prepared = f"; prepared in {where}: {_list(there)}" if there else ""
    return f"TFDS knows no dataset '{name.dataset}', and none of that name is prepared{prepared}"


def _list(names: Iterable[str]) -> str:
    """A few names of many."""
    return some(sorted(names), 8)
