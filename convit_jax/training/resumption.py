"""Checking that a resumed run matches its checkpoints: its config, its classes, its data."""

import dataclasses
import json
import logging
from collections.abc import Sequence
from typing import Any

from etils import epath

from convit_jax.config import Config, as_saved
from convit_jax.config.typed import differences
from convit_jax.data.sources.class_names import describe_difference
from convit_jax.errors import InputError, boundary
from convit_jax.weights import Card
from convit_jax.weights.model_checkpoints import CARD, CONFIG

# The checkpoint item that describes the training data.
DATA = "data"

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class DataRecord:
    """What a checkpoint says about the training data, and about the teacher.

    Attributes:
        train_examples: their number; None in a checkpoint of an earlier version.
        broken_images: indices of those that were found to be broken.
        teacher: digest of the teacher; "" without one.
    """

    train_examples: int | None = None
    broken_images: Sequence[int] = ()
    teacher: str = ""


def check_same_run(
    directory: epath.Path,
    config: Config,
    class_names: Sequence[str],
    num_examples: int,
    teacher: str = "",
) -> Sequence[int]:
    """Check a config and classes against those of the newest readable checkpoint.

    The checkpoints are not changed. Keys that do not change the meaning of the state may differ,
    and so may the number of examples; such differences are logged.

    Args:
        directory: directory of the checkpoints.
        config: the config of the resumed run.
        class_names: the classes of its training data, in the order of the labels.
        num_examples: the number of its training examples.
        teacher: the digest of its teacher; "" without one.

    Returns:
        The indices of training examples that the run found to be broken.

    Raises:
        InputError: the classes differ, or the teacher, or a config key that is fixed for a run.
        MachineError: a fault of the machine prevents reading the checkpoints.
    """
    record = _newest_record(directory)
    if record is None:
        return ()
    run = f"the run in {directory.parent}"
    if record.class_names and (difference := describe_difference(record.class_names, class_names)):
        raise InputError(
            f"{run} was {difference}: use another --workdir, or config.data.train with the same "
            "classes"
        )
    changed = list(differences(record.config, config))
    contradictions = [
        f"{key} ({old!r} in its checkpoint, {new!r} now)"
        for key, old, new, fixed in changed
        if fixed
    ]
    if contradictions:
        raise InputError(
            f"{run} was started with another configuration: {'; '.join(contradictions)}. Use "
            "another --workdir, or the original configuration"
        )
    if record.data.teacher and record.data.teacher != teacher:
        raise InputError(
            f"{run} was started with another teacher: config.distill.teacher="
            f"{config.distill.teacher} has changed since. Use another --workdir, or the original "
            "teacher"
        )
    if record.unknown_keys:
        log.warning(
            "the run has config keys unknown to this version, which are not compared: %s",
            ", ".join(record.unknown_keys),
        )
    for key, old, new, _ in changed:
        log.info("config.%s was %r until step %d, is now %r", key, old, record.step, new)
    if record.data.train_examples == num_examples:
        return record.data.broken_images
    if record.data.train_examples is not None:
        log.warning(
            "config.data.train had %d examples until step %d, now has %d: from here on their order "
            "and the length of an epoch differ from a run that had these from the start",
            record.data.train_examples,
            record.step,
            num_examples,
        )
    return ()


@dataclasses.dataclass(frozen=True)
class _Record:
    """What a checkpoint says about its run.

    Attributes:
        step: steps done.
        config: its config, as far as this version knows the keys.
        unknown_keys: the other config keys.
        class_names: the names of its classes, if it had any.
        data: the training data.
    """

    step: int
    config: Config
    unknown_keys: list[str]
    class_names: Sequence[str] | None
    data: DataRecord


def _newest_record(directory: epath.Path) -> _Record | None:
    """Return the record of the newest checkpoint whose record can be read, or None."""
    if not directory.is_dir():
        return None
    steps = sorted((int(p.name) for p in directory.iterdir() if p.name.isdigit()), reverse=True)
    for step in steps:
        checkpoint = directory / str(step)
        try:
            with boundary(str(checkpoint)):
                config, unknown_keys = as_saved(_read_item(checkpoint, CONFIG))
                # The class names alone, because the rest may be another version's card.
                names = _read_item(checkpoint, CARD).get("class_names")
                class_names = Card.from_json({"class_names": names}).class_names
                data = DataRecord()
                if (checkpoint / DATA).exists():
                    data = _parse_data_record(_read_item(checkpoint, DATA))
        except InputError as error:
            log.debug("%s", error)  # restoring finds out whether it is damaged
            continue
        return _Record(step, config, unknown_keys, class_names, data)
    return None


def _parse_data_record(record: dict[str, Any]) -> DataRecord:
    count = int(record["train_examples"])
    broken = [int(index) for index in record.get("broken_images", ())]
    if not all(0 <= index < count for index in broken):
        raise ValueError(f"broken images {broken[:3]} of {count}")
    return DataRecord(count, broken, str(record.get("teacher", "")))


def _read_item(checkpoint: epath.Path, item: str) -> dict[str, Any]:
    return json.loads((checkpoint / item / "metadata").read_text())
