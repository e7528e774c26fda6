"""Datasets with a model's classes in another order, or with a subset of them (ImageNet-A, -R)."""

import dataclasses

import numpy as np

from convit_jax.data.sources import imagenet
from convit_jax.data.sources.class_names import normal_form, normal_forms
from convit_jax.data.sources.source import Source
from convit_jax.errors import InputError, some


def align_classes(
    source: Source, class_names: tuple[str, ...] | None, num_classes: int
) -> tuple[Source, tuple[int, ...] | None]:
    """Relabel examples with a model's classes, matched by name.

    Args:
        source: the examples.
        class_names: the model's class names. If None, the dataset must have `num_classes` classes,
            which are assumed to be the model's, in the same order.
        num_classes: the model's number of classes.

    Returns:
        The examples with the model's labels, and the model's classes that occur in the dataset's
        class list, or None if it has all of them.

    Raises:
        InputError: the dataset has classes that the model lacks.
    """
    if class_names is None:
        if len(source.class_names) != num_classes:
            raise InputError(
                f"{source.name} has {len(source.class_names)} classes, the weights have "
                f"{num_classes} without names: expected data with the same classes"
            )
        return source, None
    if normal_forms(source.class_names) == normal_forms(class_names):
        return source, None
    label_of = _labels_by_name(class_names)
    if source.label_shape:
        raise InputError(
            f"{source.name} has several labels per image, and other classes than the weights"
        )
    unknown = [name for name in source.class_names if normal_form(name) not in label_of]
    if unknown:
        raise InputError(
            f"{source.name} has classes that the weights lack: {some(unknown)}; the weights have "
            f"{some(class_names)}"
        )
    class_subset = sorted({label_of[normal_form(name)] for name in source.class_names})
    is_subset = len(class_subset) < len(class_names)
    return _relabel(source, class_names, label_of), tuple(class_subset) if is_subset else None


def align_to_training_classes(source: Source, train: Source) -> Source:
    """Relabel evaluation examples with the labels of the training data, matched by name.

    Raises:
        InputError: one of the two has a class that the other lacks.
    """
    eval_names, train_names = source.class_names, train.class_names
    if normal_forms(eval_names) == normal_forms(train_names):
        return source
    label_of = _labels_by_name(train_names)
    unknown = [name for name in eval_names if normal_form(name) not in label_of]
    present = {label_of.get(normal_form(name)) for name in eval_names}
    missing = [name for label, name in enumerate(train_names) if label not in present]
    if unknown or missing:
        parts = [f"only the former has {some(unknown)}"] * bool(unknown)
        parts += [f"only the latter has {some(missing)}"] * bool(missing)
        raise InputError(
            f"config.data.eval={source.name} has other classes ({len(eval_names):,}) than "
            f"config.data.train={train.name} ({len(train_names):,}): {', '.join(parts)}"
        )
    return _relabel(source, train_names, label_of)


def _relabel(source: Source, class_names: tuple[str, ...], label_of: dict[str, int]) -> Source:
    label_map = np.array([label_of[normal_form(name)] for name in source.class_names], np.int32)
    return dataclasses.replace(source, class_names=class_names, label_map=label_map)


def _labels_by_name(class_names: tuple[str, ...]) -> dict[str, int]:
    """Map names to labels; ImageNet classes are found by WordNet id and by readable name."""
    by_id = {normal_form(name): label for label, name in enumerate(class_names)}
    readable_names = imagenet.readable_names(class_names)
    by_readable_name = {normal_form(name): label for label, name in enumerate(readable_names)}
    return by_readable_name | by_id
