"""Where examples come from: a name like `folder:PATH` → random access to encoded images."""

import collections
import contextlib
import re
import sys
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from convit_jax.data.image_paths import USUAL, images_below, log_left_out
from convit_jax.data.records import ArrayRecords, ImageFiles, Span, TFExamples
from convit_jax.data.source import Source
from convit_jax.data.tfrecord_index import open_tfrecords
from convit_jax.errors import InputError, nearest

KINDS = {
    "digits": "digits:train|test",
    "tfds": "tfds:NAME:SPLIT[:DATA_DIR]",
    "folder": "folder:PATH",
}
_SPLIT = r"(?P<split>\w+(\[[^\]]*\])?)"  # a slice has colons of its own, and so has gs://
_DIGITS = re.compile(_SPLIT)
_TFDS = re.compile(rf"(?P<dataset>[^:]+):{_SPLIT}(:(?P<data_dir>.+))?")


def open_source(name: str) -> Source:
    """Opens the examples that a name stands for.

    The digits are written to TFDS's data directory when they are first asked for. Other TFDS data
    must have been prepared, as ArrayRecord or as TFRecord, which is read where it lies.

    Args:
        name: `digits:train`, `digits:test`, `tfds:NAME:SPLIT[:DATA_DIR]` or `folder:PATH`.

    Raises:
        InputError: an unknown kind, dataset or split, or data that are not there.
    """
    kind, _, rest = name.partition(":")
    if kind not in KINDS:
        raise InputError(
            f"data '{name}': unknown kind '{kind}', expected {' or '.join(KINDS.values())}"
        )
    if kind == "folder":
        return _open_folder(name, rest)
    match = (_DIGITS if kind == "digits" else _TFDS).fullmatch(rest)
    if not match:
        raise InputError(f"data '{name}': expected {KINDS[kind]}")
    if kind == "digits":
        return _open_split(_digits(), match["split"], name)
    builder = _prepared_builder(name, match["dataset"], match["data_dir"])
    return _open_split(builder, match["split"], name)


def _open_folder(name: str, path: str) -> Source:
    """Class directories of images; files deeper inside belong to the class at the top."""
    root = epath.Path(path)
    if not path or not root.is_dir():
        raise InputError(f"data '{name}': no directory '{path}', expected {KINDS['folder']}")
    classes = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not classes:
        raise InputError(
            f"data '{name}': no class directories in it, expected PATH/CLASS/IMAGE"
            f" with images {USUAL}"
        )
    names, labels, empty = [], [], []
    left_out: collections.Counter[str] = collections.Counter()
    for label, class_name in enumerate(classes):
        files = sorted(images_below(root / class_name, class_name, left_out))
        names += files
        labels += [label] * len(files)
        if not files:
            empty.append(class_name)
    log_left_out(left_out, name)
    if empty:
        raise InputError(
            f"data '{name}': no images ({USUAL}) in the class "
            f"director{'y' if len(empty) == 1 else 'ies'} {', '.join(empty[:5])}"
        )
    files = ImageFiles(path.rstrip("/"), tuple(names), np.asarray(labels, np.int32))
    return Source(name, files, tuple(classes))


def _digits() -> tfds.core.DatasetBuilder:
    # Imported here: importing it registers the builder, which is wanted only by name.
    from convit_jax.data.digits import Digits  # noqa: PLC0415

    builder = Digits(file_format="array_record")
    if not builder.data_path.exists():
        tfds.disable_progress_bar()
        try:
            # TFDS tells of it on standard output, which is the commands'.
            with contextlib.redirect_stdout(sys.stderr):
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
    # Datasets such as ReaL give an image several labels, or none, beside the one it had.
    several = [key for key, feature in features.items() if _holds_labels(feature)]
    if several:
        label_key = several[0]
        class_names = features[label_key].feature.names
    else:
        label_key = _feature_of_type(features, tfds.features.ClassLabel, name)
        class_names = features[label_key].names
    name_key = "file_name" if "file_name" in features else None
    records = _open_records(builder, split, name)
    classes = len(class_names) if several else 0
    examples = TFExamples(records, image_key, label_key, name_key, classes)
    source = Source(name, examples, tuple(class_names))
    if not several:
        _check_label(source)
    return source


def _open_records(builder: tfds.core.DatasetBuilder, split: str, name: str) -> Any:
    """The split's serialised examples, in whichever of the two formats they were prepared."""
    file_format = builder.info.file_format
    instructions = builder.info.splits[split].file_instructions
    spans = tuple(
        Span(str(part.filename), part.skip, part.skip + part.take) for part in instructions
    )
    if not spans:
        raise InputError(f"data '{name}': the split '{split}' has no examples")
    if file_format == tfds.core.FileFormat.ARRAY_RECORD:
        return ArrayRecords(spans)
    if file_format == tfds.core.FileFormat.TFRECORD:
        return open_tfrecords(spans, [part.examples_in_shard for part in instructions], name)
    raise InputError(
        f"data '{name}': prepared as {file_format.value}, expected array_record or tfrecord"
    )


def _check_label(source: Source) -> None:
    """Test splits of some datasets have -1 for a label."""
    label = source.examples[0][1]
    if not 0 <= label < len(source.class_names):
        raise InputError(
            f"data '{source.name}': the first label is {label}, expected 0 to "
            f"{len(source.class_names) - 1}; some test splits have no labels"
        )


def _holds_labels(feature: Any) -> bool:
    return isinstance(feature, tfds.features.Sequence) and isinstance(
        feature.feature, tfds.features.ClassLabel
    )


def _feature_of_type(features: tfds.features.FeaturesDict, kind: type, name: str) -> str:
    found = [key for key, feature in features.items() if isinstance(feature, kind)]
    if len(found) != 1:
        raise InputError(
            f"data '{name}': expected one {kind.__name__} feature, found {len(found)} among "
            f"{', '.join(features)}"
        )
    return found[0]
