"""ImageNet's 1,000 classes: their ids in the order of the labels, and what they are called."""

import collections
import functools
import importlib.resources
from collections.abc import Sequence

NUM_CLASSES = 1000
NUM_TRAIN_IMAGES = 1_281_167
NUM_VALIDATION_IMAGES = 50_000
# Of the training images' red, green and blue, in units of full scale.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
# The usual crop of evaluation: 224 of 256 pixels of the scaled image's side.
CROP_FRACTION = 0.875


@functools.cache
def _names_by_id() -> dict[str, str]:
    """WordNet id → the class's names, separated by commas; in the order of the labels."""
    text = (
        importlib.resources.files("convit_jax.data.sources")
        .joinpath("imagenet_classes.txt")
        .read_text()
    )
    lines = (line.split("\t") for line in text.splitlines() if not line.startswith("#"))
    return dict(lines)


def class_ids() -> tuple[str, ...]:
    """WordNet ids, `n01440764` first, in the order of the labels."""
    return tuple(_names_by_id())


def is_imagenet(class_names: Sequence[str]) -> bool:
    """Whether these are the 1,000 classes, in their order."""
    return tuple(class_names) == class_ids()


def readable(class_names: Sequence[str]) -> list[str]:
    """Class names for people: ImageNet's ids become words, other names stay as they are.

    A class is called by the first of its names; where two classes share that ("crane", the bird
    and the machine), the id stands beside it.
    """
    known = _names_by_id()
    words = [known[name].partition(",")[0] if name in known else name for name in class_names]
    often = collections.Counter(words)
    return [
        f"{word} ({name})" if often[word] > 1 and word != name else word
        for word, name in zip(words, class_names, strict=True)
    ]
