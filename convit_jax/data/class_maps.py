"""Data whose classes are some of a model's: ImageNet-A and -R, or folders of a few classes."""

import dataclasses

import numpy as np

from convit_jax.data import imagenet
from convit_jax.data.source import Source
from convit_jax.errors import InputError


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
    if theirs == class_names:
        return source, None
    label_of = _labels_by_name(class_names)
    if source.label_shape:
        raise InputError(f"{source.name} has several labels an image, and not the weights' classes")
    unknown = [name for name in theirs if name not in label_of]
    if unknown:
        raise InputError(
            f"{source.name} has classes that the weights have not: {_some(unknown)}; those of the "
            f"weights are {_some(class_names)}"
        )
    label_map = np.array([label_of[name] for name in theirs], np.int32)
    aligned = dataclasses.replace(source, class_names=class_names, label_map=label_map)
    among = tuple(sorted(set(label_map.tolist())))
    return aligned, None if len(among) == len(class_names) else among


def _labels_by_name(class_names: tuple[str, ...]) -> dict[str, int]:
    """Label by name; ImageNet's classes may be called by their ids or by their words."""
    labels = {name: label for label, name in enumerate(class_names)}
    words = {name: label for label, name in enumerate(imagenet.readable(class_names))}
    return words | labels


def _some(names: list[str] | tuple[str, ...]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
