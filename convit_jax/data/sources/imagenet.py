"""ImageNet's 1,000 classes: WordNet ids in label order, and readable names."""

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
    """Map each WordNet id to the class's comma-separated names, in label order."""
    file = importlib.resources.files("convit_jax.data.sources") / "imagenet_classes.txt"
    lines = file.read_text().splitlines()
    return dict(line.split("\t") for line in lines if not line.startswith("#"))


def class_ids() -> tuple[str, ...]:
    """Return the WordNet ids in label order, from `n01440764`."""
    return tuple(_names_by_id())


def is_imagenet(class_names: Sequence[str]) -> bool:
    """Return whether these are the ids of all 1,000 classes, in label order."""
    return tuple(class_names) == class_ids()


def readable_names(class_names: Sequence[str]) -> list[str]:
    """Replace ImageNet's ids by readable names; other names are returned unchanged.

    A class gets the first of its names. Where two classes share it ("crane", the bird and the
    machine), the id is appended.
    """
    names = _names_by_id()
    readable = [names[name].partition(",")[0] if name in names else name for name in class_names]
    occurrences = collections.Counter(readable)
    return [
        f"{first} ({name})" if occurrences[first] > 1 and first != name else first
        for first, name in zip(readable, class_names, strict=True)
    ]
