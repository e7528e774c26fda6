"""Opening of data sources by name: `folder:PATH`, `tfds:…`, `wds:…`, `digits:train`, …"""

import contextlib
import io
import logging
from collections.abc import Mapping
from typing import Any

import tensorflow_datasets as tfds

from convit_jax.data.sources.features import choose_features
from convit_jax.data.sources.folders import open_folder
from convit_jax.data.sources.prepared import (
    NAME_FORMAT,
    PreparedName,
    parse_split,
    prepared_builder,
)
from convit_jax.data.sources.records import ArrayRecords, Records, Span, TFExamples
from convit_jax.data.sources.source import Source
from convit_jax.data.sources.tar_shards import NAME_FORMAT as TAR_FORMAT
from convit_jax.data.sources.tar_shards import open_tar_shards
from convit_jax.data.sources.tfrecord_index import open_tfrecords
from convit_jax.errors import InputError, boundary, naming, nearest

log = logging.getLogger(__name__)

_DIGITS_FORMAT, _LETTERS_FORMAT = "digits:train|test", "letters:train|test"


def open_source(name: str) -> Source:
    """Open a data source by its name.

    The digits and letters are written to TFDS's data directory on first use. Other TFDS datasets
    must have been prepared, as ArrayRecord or TFRecord, and are read in place.

    Args:
        name: `digits:train`, `digits:test`, `letters:train`, `letters:test`,
            `tfds:NAME[/CONFIG][:VERSION]:SPLIT[:DATA_DIR]`, `folder:PATH` or `wds:PATTERN`, of tar
            files.

    Raises:
        InputError: an unknown kind, dataset or split, or the data are not there.
        MachineError: the data cannot be read through a fault of the machine.
    """
    kind = name.partition(":")[0]
    if kind not in KINDS:
        formats = " or ".join(name_format for name_format, _ in KINDS.values())
        raise InputError(f"data '{name}': unknown kind '{kind}', expected {formats}")
    with boundary(f"data '{name}'", "cannot be opened"):
        return KINDS[kind][1](name)


def _open_digits(name: str) -> Source:
    # Importing the module registers its builder with TFDS.
    from convit_jax.data.sources.digits import Digits  # noqa: PLC0415

    return _open_own(Digits, name, _DIGITS_FORMAT)


def _open_letters(name: str) -> Source:
    from convit_jax.data.sources.letters import Letters  # noqa: PLC0415

    return _open_own(Letters, name, _LETTERS_FORMAT)


def _open_own(builder_class: type[tfds.core.DatasetBuilder], name: str, expected: str) -> Source:
    """Open a dataset whose builder is in this package."""
    split, data_dir = parse_split(name.partition(":")[2])
    if not split or data_dir:
        raise InputError(f"data '{name}': expected {expected}")
    with naming(f"data '{name}'"):
        builder = _written_builder(builder_class)
    return _open_split(builder, split, name)


def _open_tfds(name: str) -> Source:
    parsed = PreparedName.parse(name.removeprefix("tfds:"))
    with naming(f"data '{name}'"):
        if not parsed.dataset or not parsed.split:
            raise InputError(f"expected {NAME_FORMAT}{_splits_hint(parsed)}")
        builder = prepared_builder(parsed)
    return _open_split(builder, parsed.split, name)


# The kinds of names, with the format of each and the function that opens it.
KINDS = {
    "digits": (_DIGITS_FORMAT, _open_digits),
    "letters": (_LETTERS_FORMAT, _open_letters),
    "tfds": (NAME_FORMAT, _open_tfds),
    "folder": ("folder:PATH", open_folder),
    "wds": (TAR_FORMAT, open_tar_shards),
}


def _splits_hint(parsed: PreparedName) -> str:
    """List the splits of a dataset that was named without one, or return ""."""
    if not parsed.dataset:
        return ""
    try:
        splits = prepared_builder(parsed).info.splits
    except InputError:
        return ""
    return f", where SPLIT is one of {', '.join(splits)}"


def _written_builder(builder_class: type[tfds.core.DatasetBuilder]) -> tfds.core.DatasetBuilder:
    """Return a builder whose data are written to disk if they are not yet."""
    builder = builder_class(file_format="array_record")
    if not builder.data_path.exists():
        tfds.disable_progress_bar()
        try:
            log.info("writing the %s to %s, once", builder.name, builder.data_path)
            # TFDS prints messages on standard output, which is reserved for the commands' output.
            with contextlib.redirect_stdout(io.StringIO()):
                builder.download_and_prepare()
        except OSError:
            # Another process may have written the same files first; its copy will do.
            if not builder.data_path.exists():
                raise
        builder = builder_class(file_format="array_record")
    return builder


def _open_split(builder: tfds.core.DatasetBuilder, split: str, name: str) -> Source:
    spans, records_per_file = _file_spans(builder.info.splits, split, name)
    features = choose_features(builder.info, name)
    records: Records
    if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
        records = ArrayRecords(spans)
    elif builder.info.file_format == tfds.core.FileFormat.TFRECORD:
        records = open_tfrecords(spans, records_per_file, name)
    else:
        raise InputError(
            f"data '{name}': prepared as {builder.info.file_format.value}, expected array_record "
            "or tfrecord"
        )
    label_shape = (len(features.class_names),) if features.multi_label else ()
    examples = TFExamples(records, features.image, features.label, features.file_name, label_shape)
    source = Source(name, examples, features.class_names)
    if not features.multi_label:
        _check_first_label(source)
    return source


def _file_spans(
    splits: Mapping[str, Any], split: str, name: str
) -> tuple[tuple[Span, ...], list[int]]:
    """Return which records of which files make up a split, and each file's number of records.

    Raises:
        InputError: there is no such split, or it has no examples.
    """
    for part in split.split("+"):
        base = part.partition("[")[0].strip()
        if base not in splits and base != "all":
            raise InputError(f"data '{name}': no split '{base}', {nearest(base, splits)}")
    available = " and ".join(f"{key} ({splits[key].num_examples} examples)" for key in splits)
    formats = "such as train, train[:90%], train[10:20] or train+test"
    with boundary(f"data '{name}': '{split}'", f"is not a split of {available}, {formats}"):
        instructions = splits[split].file_instructions
    if any(part.take < 0 for part in instructions) or not sum(part.take for part in instructions):
        raise InputError(f"data '{name}': the split '{split}' has no examples")
    return (
        tuple(Span(str(p.filename), p.skip, p.skip + p.take) for p in instructions),
        [part.examples_in_shard for part in instructions],
    )


def _check_first_label(source: Source) -> None:
    """Refuse a split whose first label is invalid; test splits of some datasets have only -1."""
    label = source.examples[0][1]
    if not 0 <= label < len(source.class_names):
        raise InputError(
            f"data '{source.name}': the first label is {label}, expected 0 to "
            f"{len(source.class_names) - 1}; some test splits have no labels"
        )
