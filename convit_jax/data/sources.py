"""Where examples come from: a name like `digits:train` → random access to encoded images."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import tensorflow_datasets as tfds

from convit_jax.errors import InputError, nearest

KINDS = {"digits": "digits:train|test", "tfds": "tfds:NAME:SPLIT[:DATA_DIR]"}
_SPLIT = r"(?P<split>\w+(\[[^\]]*\])?)"  # a slice has colons of its own, and so has gs://
_DIGITS = re.compile(_SPLIT)
_TFDS = re.compile(rf"(?P<dataset>[^:]+):{_SPLIT}(:(?P<data_dir>.+))?")


@dataclasses.dataclass(frozen=True)
class Source:
    """Random access to labelled images.

    Attributes:
        examples: index → {image key: encoded bytes, label key: int}.
        class_names: the name of each label.
        image_key, label_key: what the two are called in an example.
    """

    examples: Sequence[dict[str, Any]]
    class_names: tuple[str, ...]
    image_key: str
    label_key: str

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        """The encoded image and its label."""
        example = self.examples[index]
        return example[self.image_key], int(example[self.label_key])


def open_source(name: str) -> Source:
    """Opens the examples that a name stands for.

    The digits are written to TFDS's data directory when they are first asked for; anything else
    must have been prepared as ArrayRecord.

    Args:
        name: `digits:train`, `digits:test`, or `tfds:NAME:SPLIT[:DATA_DIR]`.

    Raises:
        InputError: an unknown kind, dataset or split, or data that are not there.
    """
    kind, _, rest = name.partition(":")
    if kind not in KINDS:
        raise InputError(
            f"data '{name}': unknown kind '{kind}', expected {' or '.join(KINDS.values())}"
        )
    match = (_DIGITS if kind == "digits" else _TFDS).fullmatch(rest)
    if not match:
        raise InputError(f"data '{name}': expected {KINDS[kind]}")
    if kind == "digits":
        return _open_split(_digits(), match["split"], name)
    builder = _prepared_builder(name, match["dataset"], match["data_dir"])
    return _open_split(builder, match["split"], name)


def _digits() -> tfds.core.DatasetBuilder:
    # Imported here: importing it registers the builder, which is wanted only by name.
    from convit_jax.data.digits import Digits  # noqa: PLC0415

    builder = Digits(file_format="array_record")
    if not builder.data_path.exists():
        tfds.disable_progress_bar()
        try:
            builder.download_and_prepare()
        except OSError:
            # Another process wrote the same files first; its copy is as good.
            if not builder.data_path.exists():
                raise
        builder = Digits(file_format="array_record")
    return builder


def _prepared_builder(name: str, dataset: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    try:
        builder = tfds.builder(dataset, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        raise InputError(f"data '{name}': TFDS knows no dataset '{dataset}'") from error
    if not builder.data_path.exists():
        raise InputError(
            f"data '{name}': nothing is prepared in {builder.data_path}; run "
            f"`tfds build {dataset} --file_format=array_record` or name its DATA_DIR"
        )
    return builder


def _open_split(builder: tfds.core.DatasetBuilder, split: str, name: str) -> Source:
    if split.partition("[")[0] not in builder.info.splits:
        raise InputError(
            f"data '{name}': no split '{split}', {nearest(split, builder.info.splits)}"
        )
    features = builder.info.features
    image_key = _feature_of_type(features, tfds.features.Image, name)
    label_key = _feature_of_type(features, tfds.features.ClassLabel, name)
    examples = builder.as_data_source(split=split, decoders={image_key: tfds.decode.SkipDecoding()})
    return Source(examples, tuple(features[label_key].names), image_key, label_key)


def _feature_of_type(features: tfds.features.FeaturesDict, kind: type, name: str) -> str:
    found = [key for key, feature in features.items() if isinstance(feature, kind)]
    if len(found) != 1:
        raise InputError(
            f"data '{name}': expected one {kind.__name__} feature, found {len(found)} among "
            f"{', '.join(features)}"
        )
    return found[0]
