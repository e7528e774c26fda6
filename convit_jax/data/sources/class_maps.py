"""Data whose classes are some of a model's: ImageNet-A and -R, or folders of a few classes."""

import dataclasses

import numpy as np

from convit_jax.data.sources import imagenet
from convit_jax.data.sources.class_names import normal_form, normal_forms
from convit_jax.data.sources.source import Source
from convit_jax.errors import InputError, some


def align_classes(
    source: Source, class_names: tuple[str, ...] | None, num_classes: int
) -> tuple[Source, tuple[int, ...] | None]:
    """The examples with a model's labels.

    Args:
        source: the examples.
        class_names: the model's; None where they are not known, when the data's are taken to be
            them, in their order.
        num_classes: how many the model has.

    Returns:
        The examples, labelled by the model's classes, and which of these the data have, or None
        where they have all.

    Raises:
        InputError: the data have classes that the model has not.
    """
    theirs = source.class_names
    if class_names is None:
        if len(theirs) != num_classes:
            raise InputError(
                f"{source.name} has {len(theirs)} classes, the weights have {num_classes}, whose "
                "names they do not say: expected data of the same classes"
            )
        return source, None
    if normal_forms(theirs) == normal_forms(class_names):
        return source, None
    label_of = _labels_by_name(class_names)
    if source.label_shape:
        raise InputError(f"{source.name} has several labels an image, and not the weights' classes")
    unknown = [name for name in theirs if normal_form(name) not in label_of]
    if unknown:
        raise InputError(
            f"{source.name} has classes that the weights have not: {some(unknown)}; those of the "
            f"weights are {some(class_names)}"
        )
    aligned = _relabelled(source, class_names, label_of)
    class_subset = tuple(sorted(set(aligned.label_map.tolist())))
    return aligned, None if len(class_subset) == len(class_names) else class_subset


def with_classes_of(source: Source, train: Source) -> Source:
    """Examples to evaluate on, with the labels that their classes have in training.

    Raises:
        InputError: one of the two has a class that the other has not.
    """
    theirs, ours = source.class_names, train.class_names
    if normal_forms(theirs) == normal_forms(ours):
        return source
    label_of = _labels_by_name(ours)
    unknown = [name for name in theirs if normal_form(name) not in label_of]
    there = {label_of.get(normal_form(name)) for name in theirs}
    missing = [name for label, name in enumerate(ours) if label not in there]
    if unknown or missing:
        parts = [f"only the former has {some(unknown)}"] * bool(unknown)
        parts += [f"only the latter has {some(missing)}"] * bool(missing)
        raise InputError(
            f"config.data.eval={source.name} has other classes ({len(theirs):,}) than "
            f"config.data.train={train.name} ({len(ours):,}): {', '.join(parts)}"
        )
    return _relabelled(source, ours, label_of)


def _relabelled(source: Source, class_names: tuple[str, ...], label_of: dict[str, int]) -> Source:
    label_map = np.array([label_of[normal_form(name)] for name in source.class_names], np.int32)
    return dataclasses.replace(source, class_names=class_names, label_map=label_map)


def _labels_by_name(class_names: tuple[str, ...]) -> dict[str, int]:
    """Label by name; ImageNet's classes may be called by their ids or by their words."""
    labels = {normal_form(name): label for label, name in enumerate(class_names)}
    words = {normal_form(name): label for label, name in enumerate(imagenet.readable(class_names))}
    return words | labels
