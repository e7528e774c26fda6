"""Where examples come from: a name like `folder:PATH` → random access to encoded images."""

import contextlib
import io
import logging
from collections.abc import Mapping
from typing import Any

import tensorflow_datasets as tfds

from convit_jax.data.sources.features import choose_features
from convit_jax.data.sources.folders import open_folder
from convit_jax.data.sources.prepared import FORM, PreparedName, cut_split, prepared_builder
from convit_jax.data.sources.records import ArrayRecords, Span, TFExamples
from convit_jax.data.sources.source import Source
from convit_jax.data.sources.tfrecord_index import open_tfrecords
from convit_jax.errors import InputError, boundary, nearest

log = logging.getLogger(__name__)

KINDS = {
    "digits": "digits:train|test",
    "tfds": FORM,
    "folder": "folder:PATH",
}


def open_source(name: str) -> Source:
    """Opens the examples that a name stands for.

    The digits are written to TFDS's data directory when they are first asked for. Other TFDS data
    must have been prepared, as ArrayRecord or as TFRecord, which is read where it lies.

    Args:
        name: `digits:train`, `digits:test`, `tfds:NAME[/CONFIG][:VERSION]:SPLIT[:DATA_DIR]` or
            `folder:PATH`.

    Raises:
        InputError: an unknown kind, dataset or split, or data that are not there.
        MachineError: the machine does not let them be read.
    """
    kind = name.partition(":")[0]
    if kind not in KINDS:
        raise InputError(
            f"data '{name}': unknown kind '{kind}', expected {' or '.join(KINDS.values())}"
        )
    opener = {"folder": open_folder, "digits": _open_digits, "tfds": _open_tfds}[kind]
    with boundary(f"data '{name}'", "cannot be opened"):
        return opener(name)


def _open_digits(name: str) -> Source:
    split, rest = cut_split(name.partition(":")[2])
    if not split or rest:
        raise InputError(f"data '{name}': expected {KINDS['digits']}")
    return _open_split(_digits(), split, name)


def _open_tfds(name: str) -> Source:
    parsed = PreparedName.parse(name.removeprefix("tfds:"))
    try:
        if not parsed.dataset or not parsed.split:
            raise InputError(f"expected {KINDS['tfds']}{_splits_of(parsed)}")
        builder = prepared_builder(parsed)
    except InputError as error:
        raise InputError(f"data '{name}': {error}") from error
    return _open_split(builder, parsed.split, name)


def _splits_of(parsed: PreparedName) -> str:
    """Which splits there would be, where none was named."""
    if not parsed.dataset:
        return ""
    try:
        splits = prepared_builder(parsed).info.splits
    except InputError:
        return ""
    return f", where SPLIT is one of {', '.join(splits)}"


def _digits() -> tfds.core.DatasetBuilder:
    # Imported here: importing it registers the builder, which is wanted only by name.
    from convit_jax.data.sources.digits import Digits  # noqa: PLC0415

    builder = Digits(file_format="array_record")
    if not builder.data_path.exists():
        tfds.disable_progress_bar()
        try:
            log.info("writing the digits to %s, once", builder.data_path)
            # TFDS tells of it on standard output, which is the commands'.
            with contextlib.redirect_stdout(io.StringIO()):
                builder.download_and_prepare()
        except OSError:
            # Another process wrote the same files first; its copy is as good.
            if not builder.data_path.exists():
                raise
        builder = Digits(file_format="array_record")
    return builder


def _open_split(builder: tfds.core.DatasetBuilder, split: str, name: str) -> Source:
    spans, records_in_file = _spans(builder.info.splits, split, name)
    chosen = choose_features(builder.info, name)
    if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
        records = ArrayRecords(spans)
    elif builder.info.file_format == tfds.core.FileFormat.TFRECORD:
        records = open_tfrecords(spans, records_in_file, name)
    else:
        raise InputError(
            f"data '{name}': prepared as {builder.info.file_format.value}, expected array_record "
            "or tfrecord"
        )
    classes = len(chosen.class_names) if chosen.several else 0
    examples = TFExamples(records, chosen.image, chosen.label, chosen.file_name, classes)
    source = Source(name, examples, chosen.class_names)
    if not chosen.several:
        _check_label(source)
    return source


def _spans(splits: Mapping[str, Any], split: str, name: str) -> tuple[tuple[Span, ...], list[int]]:
    """Which records of which files a split is, and how many records each file holds.

    Raises:
        InputError: there is no such split, or nothing in it.
    """
    for part in split.split("+"):
        base = part.partition("[")[0].strip()
        if base not in splits and base != "all":
            raise InputError(f"data '{name}': no split '{base}', {nearest(base, splits)}")
    there = " and ".join(f"{key} ({splits[key].num_examples} examples)" for key in splits)
    forms = "such as train, train[:90%], train[10:20] or train+test"
    with boundary(f"data '{name}': '{split}'", f"is no split of {there}, {forms}"):
        instructions = splits[split].file_instructions
    if any(part.take < 0 for part in instructions) or not sum(part.take for part in instructions):
        raise InputError(f"data '{name}': the split '{split}' has no examples")
    return (
        tuple(Span(str(p.filename), p.skip, p.skip + p.take) for p in instructions),
        [part.examples_in_shard for part in instructions],
    )


def _check_label(source: Source) -> None:
    """Test splits of some datasets have -1 for a label."""
    label = source.examples[0][1]
    if not 0 <= label < len(source.class_names):
        raise InputError(
            f"data '{source.name}': the first label is {label}, expected 0 to "
            f"{len(source.class_names) - 1}; some test splits have no labels"
        )
