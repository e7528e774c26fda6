"""Which features of a TFDS dataset are the image and its label."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds

from convit_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class ChosenFeatures:
    """The features that are read, by the names that they have in a record (`input/image`).

    Attributes:
        image, label: the two.
        file_name: the feature that holds an example's file name, or None.
        class_names: the name of each label.
        several: whether an image may have several labels, or none.
    """

    image: str
    label: str
    file_name: str | None
    class_names: tuple[str, ...]
    several: bool


def choose_features(info: tfds.core.DatasetInfo, name: str) -> ChosenFeatures:
    """The image and the label of a dataset.

    The dataset's own `supervised_keys` decide; where it has none, or they leave it open, the only
    feature of the kind is taken.

    Args:
        info: what TFDS knows of the dataset.
        name: the data's, for messages.

    Raises:
        InputError: there is no image or no label, or several and nothing tells which.
    """
    features = dict(_flat(info.features))
    inputs, targets, *_ = (*(info.supervised_keys or ()), (), ())
    image = _one(features, inputs, _is_image, "Image", name)
    # Datasets such as ReaL give an image several labels, or none, beside the one it had.
    several = {key: feature for key, feature in features.items() if _is_labels(feature)}
    targeted = _named_by(features, targets)
    if not any(_is_label(features[key]) for key in targeted) and several:
        label = _one(features, targets, _is_labels, "Sequence(ClassLabel)", name)
    else:
        label = _one(features, targets, _is_label, "ClassLabel", name)
    feature = features[label]
    names = feature.feature.names if _is_labels(feature) else feature.names
    return ChosenFeatures(
        image=image,
        label=label,
        file_name="file_name" if "file_name" in features else None,
        class_names=tuple(names),
        several=_is_labels(feature),
    )


def _one(features: Mapping[str, Any], keys: Any, is_right: Any, kind: str, name: str) -> str:
    """The feature of a kind among those that the dataset names, or among all."""
    right = [key for key in features if is_right(features[key])]
    named = [key for key in _named_by(features, keys) if key in right]
    chosen = named or right
    if len(chosen) != 1:
        told = f" ({', '.join(chosen)})" if chosen else ""
        raise InputError(
            f"data '{name}': expected one {kind} feature, found {len(chosen)}{told} among "
            f"{', '.join(features)}, and its supervised_keys do not tell which"
        )
    return chosen[0]


def _named_by(features: Mapping[str, Any], keys: Any) -> list[str]:
    """The features that a part of `supervised_keys` names: a key, or any nest of keys."""
    if isinstance(keys, str):
        return [key for key in features if key == keys or key.startswith(f"{keys}/")]
    nested = keys.values() if isinstance(keys, Mapping) else keys or ()
    return list(dict.fromkeys(key for part in nested for key in _named_by(features, part)))


def _flat(features: tfds.features.FeaturesDict, path: str = "") -> Iterator[tuple[str, Any]]:
    """(name in a record, feature) of everything in nested dictionaries of features."""
    for key, feature in features.items():
        if isinstance(feature, tfds.features.FeaturesDict):
            yield from _flat(feature, f"{path}{key}/")
        else:
            yield path + key, feature


def _is_image(feature: Any) -> bool:
    return isinstance(feature, tfds.features.Image)


def _is_label(feature: Any) -> bool:
    return isinstance(feature, tfds.features.ClassLabel)


def _is_labels(feature: Any) -> bool:
    return isinstance(feature, tfds.features.Sequence) and _is_label(feature.feature)
