"""Whether what is to go on is the run that was begun: its config, its classes, its data."""

import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from convit_jax.config import Config, as_saved
from convit_jax.config.typed import differences
from convit_jax.data.sources.class_names import describe_difference
from convit_jax.errors import InputError, boundary
from convit_jax.weights import Card
from convit_jax.weights.model_checkpoints import CARD, CONFIG

# What a checkpoint says of the data that it was trained on.
DATA = "data"

log = logging.getLogger(__name__)


def check_same_run(
    directory: epath.Path, config: Config, class_names: Sequence[str], num_examples: int
) -> None:
    """Refuses a config or classes that contradict the newest readable checkpoint's.

    Nothing is changed by looking. Keys that do not change what the state means may differ, and so
    may the number of examples; that is logged.

    Args:
        directory: of the checkpoints.
        config: of the run that is to go on.
        class_names: of its data, in the order of the labels.
        num_examples: how many it trains on.

    Raises:
        InputError: a key that is fixed for a run differs, or the classes do.
        MachineError: the machine does not let the checkpoints be read.
    """
    newest = next(_readable_records(directory), None)
    if newest is None:
        return
    step, (saved, unknown), trained_on, examples_then = newest
    run = f"the run in {directory.parent}"
    difference = describe_difference(trained_on, class_names) if trained_on else None
    if difference:
        raise InputError(
            f"{run} was {difference}: use another --workdir, or config.data.train with the classes "
            "that it had"
        )
    changed = list(differences(saved, config))
    contradictions = [
        f"{key} ({old!r} there, {new!r} here)" for key, old, new, fixed in changed if fixed
    ]
    if contradictions:
        raise InputError(
            f"{run} was started with another configuration: {'; '.join(contradictions)}. Use "
            "another --workdir, or that configuration"
        )
    if unknown:
        log.warning(
            "the run has config keys that this version does not, which are not compared: %s",
            ", ".join(unknown),
        )
    for key, old, new, _ in changed:
        log.info("config.%s was %r until step %d, is now %r", key, old, step, new)
    if examples_then not in (None, num_examples):
        log.warning(
            "config.data.train had %d examples until step %d, has %d now: from here on their order "
            "and the length of an epoch are others than in a run that began with these",
            examples_then,
            step,
            num_examples,
        )


def _readable_records(
    directory: epath.Path,
) -> Iterator[tuple[int, tuple[Config, list[str]], Sequence[str] | None, int | None]]:
    """Step, config (`as_saved`), classes and number of training examples, the newest first.

    Checkpoints in which these cannot be read are left out; earlier versions' do not tell the last.
    """
    if not directory.is_dir():
        return
    steps = sorted((int(p.name) for p in directory.iterdir() if p.name.isdigit()), reverse=True)
    for step in steps:
        checkpoint = directory / str(step)
        try:
            with boundary(str(checkpoint)):
                config = as_saved(_read_record(checkpoint, CONFIG))
                # Of a card, which may be another version's, these alone.
                names = _read_record(checkpoint, CARD).get("class_names")
                class_names = Card.from_json({"class_names": names}).class_names
                told = (checkpoint / DATA).exists()
                examples = int(_read_record(checkpoint, DATA)["train_examples"]) if told else None
        except InputError as error:
            log.debug("%s", error)  # whether it is damaged shows when it is restored
            continue
        yield step, config, class_names, examples


def _read_record(checkpoint: epath.Path, item: str) -> dict[str, Any]:
    return json.loads((checkpoint / item / "metadata").read_text())
