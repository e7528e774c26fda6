"""Selection of the image and label features of a TFDS dataset."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds

from convit_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class ChosenFeatures:
    """The features to read, by their keys in a record (`input/image` if nested).

    Attributes:
        image: key of the image.
        label: key of the label, or of the sequence of labels.
        file_name: key of the example's file name, or None if there is none.
        class_names: the name of each label.
        multi_label: whether an image has any number of labels rather than exactly one.
    """

    image: str
    label: str
    file_name: str | None
    class_names: tuple[str, ...]
    multi_label: bool


def choose_features(info: tfds.core.DatasetInfo, name: str) -> ChosenFeatures:
    """Choose the image and label features of a dataset.

    The dataset's `supervised_keys` decide. Without them, or if they are ambiguous, the only
    feature of the required type is used.

    Args:
        info: the dataset's TFDS description.
        name: name of the data, for messages.

    Raises:
        InputError: there is no image or label feature, or several and `supervised_keys` does not
            select one.
    """
    features = dict(_flatten(info.features))
    # (inputs, targets) or (inputs, targets, weights), each a key or a nest of keys.
    input_keys, target_keys = (info.supervised_keys or ((), ()))[:2]
    image = _choose_one(features, input_keys, _is_image, "Image", name)
    # Datasets such as ReaL have a sequence of labels besides the original single label.
    targets = [features[key] for key in _matching_keys(features, target_keys)]
    has_sequence = any(map(_is_label_sequence, features.values()))
    multi_label = has_sequence and not any(map(_is_label, targets))
    if multi_label:
        label = _choose_one(features, target_keys, _is_label_sequence, "Sequence(ClassLabel)", name)
    else:
        label = _choose_one(features, target_keys, _is_label, "ClassLabel", name)
    class_label = features[label].feature if multi_label else features[label]
    return ChosenFeatures(
        image=image,
        label=label,
        file_name="file_name" if "file_name" in features else None,
        class_names=tuple(class_label.names),
        multi_label=multi_label,
    )


def _choose_one(
    features: Mapping[str, Any],
    supervised: Any,
    has_type: Callable[[Any], bool],
    type_name: str,
    name: str,
) -> str:
    """Return the key of the feature of a type, preferring those in `supervised_keys`."""
    candidates = [key for key in features if has_type(features[key])]
    preferred = [key for key in _matching_keys(features, supervised) if key in candidates]
    candidates = preferred or candidates
    if len(candidates) != 1:
        listed = f" ({', '.join(candidates)})" if candidates else ""
        raise InputError(
            f"data '{name}': expected one {type_name} feature, found {len(candidates)}{listed} "
            f"among {', '.join(features)}, and its supervised_keys do not select one"
        )
    return candidates[0]


def _matching_keys(features: Mapping[str, Any], supervised: Any) -> list[str]:
    """Return the features named by a part of `supervised_keys`: a key, or a nest of keys."""
    if isinstance(supervised, str):
        return [key for key in features if f"{key}/".startswith(f"{supervised}/")]
    nested = supervised.values() if isinstance(supervised, Mapping) else supervised or ()
    return list(dict.fromkeys(key for part in nested for key in _matching_keys(features, part)))


def _flatten(features: tfds.features.FeaturesDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (key in a record, feature) for every leaf of nested feature dictionaries."""
    for key, feature in features.items():
        if isinstance(feature, tfds.features.FeaturesDict):
            yield from _flatten(feature, f"{prefix}{key}/")
        else:
            yield prefix + key, feature


def _is_image(feature: Any) -> bool:
    return isinstance(feature, tfds.features.Image)


def _is_label(feature: Any) -> bool:
    return isinstance(feature, tfds.features.ClassLabel)


def _is_label_sequence(feature: Any) -> bool:
    return isinstance(feature, tfds.features.Sequence) and _is_label(feature.feature)
