"""The examples of a run, as its config names them."""

import logging

from convit_jax import data
from convit_jax.config import Config
from convit_jax.errors import InputError

log = logging.getLogger(__name__)


def open_training_data(config: Config) -> tuple[data.Source, data.Source]:
    """What to train on and what to evaluate on, with the same classes.

    Raises:
        InputError: data that are not there, or that do not fit together.
    """
    d = config.data
    whole, whole_eval = _open_whole(config)
    if whole_eval is None:
        whole_eval = data.align_to_training_classes(_open_labelled(d.eval), whole)
    eval_examples = data.subset(
        whole_eval, fraction=1.0, choice="first", classes=d.classes, seed=config.seed
    )
    if d.holdout:
        log.info("evaluating on a part held out: %s", data.describe_classes(eval_examples))
    return _part_to_train_on(config, whole), eval_examples


def open_training_examples(config: Config) -> data.Source:
    """What to train on alone: data to evaluate on need not be there.

    Raises:
        InputError: as of `open_training_data`.
    """
    return _part_to_train_on(config, _open_whole(config)[0])


def _open_whole(config: Config) -> tuple[data.Source, data.Source | None]:
    """All examples to train on, and where some of them are held out, those."""
    whole = _open_labelled(config.data.train)
    if config.data.holdout:
        return data.hold_out(whole, config.data.holdout, config.seed)
    return whole, None


def _part_to_train_on(config: Config, whole: data.Source) -> data.Source:
    d = config.data
    examples = data.subset(
        whole,
        fraction=d.fraction,
        choice=d.fraction_choice,
        classes=d.classes,
        seed=config.seed,
    )
    if examples is not whole or d.holdout:
        log.info("training on part of %s: %s", d.train, data.describe_classes(examples))
    return examples


def _open_labelled(name: str) -> data.Source:
    source = data.open_source(name)
    if source.label_shape:
        raise InputError(
            f"{source.name} has several labels an image, expected one: convit_jax.evaluate "
            "takes such data, training does not"
        )
    return source
