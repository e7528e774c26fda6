"""The training and evaluation examples that a config names."""

import logging

import numpy as np

from convit_jax import data
from convit_jax.config import Config
from convit_jax.errors import InputError

log = logging.getLogger(__name__)


def open_training_data(config: Config) -> tuple[data.Source, data.Source]:
    """Return the training and the evaluation examples, with the same classes.

    Raises:
        InputError: data are missing, or the two do not fit together.
    """
    train_split, eval_split = _open_splits(config)
    if eval_split is None:
        eval_split = _open_single_label(config.data.eval)
        eval_split = data.align_to_training_classes(eval_split, train_split)
    eval_examples = data.subset(
        eval_split, fraction=1.0, choice="first", classes=config.data.classes, seed=config.seed
    )
    if config.data.holdout:
        log.info("evaluating on a held-out part: %s", data.describe_classes(eval_examples))
    return _select_training_subset(config, train_split), eval_examples


def open_training_examples(config: Config) -> data.Source:
    """Return the training examples alone; the evaluation data need not exist.

    Raises:
        InputError: as in `open_training_data`.
    """
    return _select_training_subset(config, _open_splits(config)[0])


def _open_splits(config: Config) -> tuple[data.Source, data.Source | None]:
    """Return the training split, and the part held out from it if the config asks for one."""
    source = _open_single_label(config.data.train)
    if config.data.holdout:
        return data.hold_out(source, config.data.holdout, config.seed)
    return source, None


def _select_training_subset(config: Config, train_split: data.Source) -> data.Source:
    d = config.data
    examples = data.subset(
        train_split,
        fraction=d.fraction,
        choice=d.fraction_choice,
        classes=d.classes,
        seed=config.seed,
    )
    if examples is not train_split or d.holdout:
        log.info("training on part of %s: %s", d.train, data.describe_classes(examples))
    return examples


def _open_single_label(name: str) -> data.Source:
    source = data.open_source(name)
    if source.label_shape:
        raise InputError(
            f"{source.name} has several labels per image, expected one: convit_jax.evaluate "
            "accepts such data, training does not"
        )
    return source


def class_weights_of(config: Config, examples: data.Source) -> tuple[float, ...]:
    """Return each class's weight in the loss, n / (k n_c), if the config asks for balance.

    Args:
        config: the configuration.
        examples: the n training examples as used, after any choice of a part; n_c are of class c.

    Returns:
        Weights of the k classes, whose mean over the examples is 1; () without balance.

    Raises:
        InputError: a class has no examples.
    """
    if not config.balance_classes:
        return ()
    counts = data.class_counts(examples)
    if not counts.all():
        name = examples.class_names[int(np.argmin(counts))]
        raise InputError(
            f"config.balance_classes: class '{name}' has no training examples in {examples.name}, "
            "so its frequency has no inverse: expected some of each class, or weights in "
            "config.class_weights"
        )
    weights = counts.sum() / (len(counts) * counts)
    log.info(
        "class weights %.3g to %.3g, for %s", weights.min(), weights.max(),
        data.describe_classes(examples),
    )  # fmt: skip
    return tuple(map(float, weights))
