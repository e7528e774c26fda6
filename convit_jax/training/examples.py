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
    whole = data.open_source(d.train)
    if d.holdout:
        whole, whole_eval = data.hold_out(whole, d.holdout, config.seed)
    else:
        whole_eval = data.open_source(d.eval)
    for source in (whole, whole_eval):
        if source.label_shape:
            raise InputError(
                f"{source.name} has several labels an image, expected one: convit_jax.evaluate "
                "takes such data, training does not"
            )
    if whole.class_names != whole_eval.class_names:
        raise InputError(
            f"config.data.eval={d.eval} has other classes ({len(whole_eval.class_names)}) than "
            f"config.data.train={d.train} ({len(whole.class_names)})"
        )
    examples = data.subset(
        whole,
        fraction=d.fraction,
        choice=d.fraction_choice,
        classes=d.classes,
        seed=config.seed,
    )
    eval_examples = data.subset(
        whole_eval, fraction=1.0, choice="first", classes=d.classes, seed=config.seed
    )
    if examples is not whole or d.holdout:
        log.info("training on part of %s: %s", d.train, data.describe_classes(examples))
    if d.holdout:
        log.info("evaluating on a part held out: %s", data.describe_classes(eval_examples))
    return examples, eval_examples
