"""Published accuracies to compare with: of the paper, the released code and timm."""

import dataclasses

from convit_jax import data
from convit_jax.data.images.preprocessing import Preprocessing
from convit_jax.data.sources import imagenet

# A mask as a key: (kind, number of layers).
NO_MASK = ("", 0)


@dataclasses.dataclass(frozen=True)
class Published:
    """A published result.

    Attributes:
        source: where it was published.
        top1, top5: accuracies in percent; None if not published.
        loss: cross-entropy, or None if not published.
    """

    source: str
    top1: float
    top5: float | None = None
    loss: float | None = None


# Crop fractions of the published evaluations: the released code's, and timm's if different.
_CROPS = {"convit": (imagenet.CROP_FRACTION,), "deit": (imagenet.CROP_FRACTION, 0.9)}

# timm's results table at 224 pixels by dataset, for the sizes below: (top-1, top-5) of the ConViTs,
# top-1 of the DeiTs, whose rows use a crop of 0.9, not 0.875. "clean" are the ImageNet validation
# images of the classes of ImageNet-A and -R, classified among those only.
_TIMM, _SIZES = "timm's results table", ("tiny", "small", "base")
_TIMM_CONVIT = {
    "imagenet2012": (None, (81.412, 95.740), (82.296, 95.936)),
    "imagenet2012_real": ((81.132, 95.057), (87.038, 97.340), (87.200, 97.297)),
    "imagenet_v2": ((61.430, 83.990), (70.710, 89.500), (71.520, 90.080)),
    "imagenet_a": ((8.707, 34.013), (24.813, 56.880), (29.387, 61.493)),
    "imagenet_r": ((35.100, 51.830), (45.250, 60.480), (48.247, 62.987)),
    "imagenet_sketch": ((22.266, 39.678), (32.956, 52.153), (35.318, 54.939)),
    "imagenet_a clean": ((90.620, 97.740), (95.190, 98.930), (95.550, 98.890)),
    "imagenet_r clean": ((90.580, 98.200), (94.910, 99.130), (95.120, 99.120)),
}
_TIMM_DEIT = {
    "imagenet2012": (72.190, 79.856, 81.980),
    "imagenet2012_real": (80.026, 85.672, 86.833),
    "imagenet_v2": (59.920, 68.530, 70.970),
    "imagenet_a": (7.213, 18.720, 27.173),
    "imagenet_r": (32.713, 42.270, 44.913),
    "imagenet_sketch": (20.140, 29.435, 32.390),
    "imagenet_a clean": (89.690, 94.430, 95.440),
    "imagenet_r clean": (89.640, 94.000, 95.040),
}

_PAPER = {
    ("convit_tiny", "pos_embed", 0): Published("paper, Table 5", 67.1),
    ("deit_tiny", "pos_embed", 0): Published("paper, Table 5", 38.3),
    ("convit_tiny", "content", 3): Published("paper, Table 6", 62.3),
    ("convit_tiny", "content", 5): Published("paper, Table 6", 35.0),
    ("convit_tiny", "content", 10): Published("paper, Table 6", 1.3),
    ("convit_tiny", "position", 3): Published("paper, Table 6", 63.5),
    ("convit_tiny", "position", 5): Published("paper, Table 6", 53.1),
    ("convit_tiny", "position", 10): Published("paper, Table 6", 46.8),
    # The README of the released code, for the released weights; no "+" models were released.
    ("convit_tiny", *NO_MASK): Published("released code", 73.116, 91.710, 1.172),
    ("convit_tiny_plus", *NO_MASK): Published("paper, Table 1", 76.7, 93.6),
    ("convit_small_plus", *NO_MASK): Published("paper, Table 1", 82.2, 95.9),
    ("convit_base_plus", *NO_MASK): Published("paper, Table 1", 82.5, 95.9),
    ("deit_tiny_plus", *NO_MASK): Published("paper, Table 1", 75.9, 93.2),
    ("deit_small_plus", *NO_MASK): Published("paper, Table 1", 79.0, 94.4),
    ("deit_base_plus", *NO_MASK): Published("paper, Table 1", 77.5, 93.5),
}


# Paper, Table 2: (top-1, top-5) in percent by fraction of ImageNet's training images. Its values at
# 100 % differ by 0.1 from those of Table 1.
_FRACTIONS = (0.05, 0.1, 0.3, 0.5, 1.0)
_TABLE_2 = {
    "convit_small": ((47.8, 70.7), (59.6, 80.3), (73.7, 90.7), (78.2, 93.8), (81.4, 95.8)),
    "deit_small": ((34.8, 57.8), (48.0, 71.5), (66.1, 86.0), (74.6, 91.8), (79.9, 95.0)),
}
SAMPLE_EFFICIENCY = {
    model: dict(zip(_FRACTIONS, results, strict=True)) for model, results in _TABLE_2.items()
}

# Paper, Table 3: top-1 in percent of each row, by the same fraction.
ABLATIONS: dict[str, dict[str, dict[float, float]]] = {
    "convit_small_plus": {
        "a": {1.0: 82.2, 0.1: 59.7},
        "b": {1.0: 82.0, 0.1: 57.4},
        "c": {1.0: 81.4, 0.1: 56.9},
        "d": {1.0: 81.6, 0.1: 54.6},
        "e": {1.0: 79.1, 0.1: 47.8},
        "f": {1.0: 78.6, 0.1: 54.3},
        "g": {1.0: 73.7, 0.1: 44.8},
    }
}


# Paper, Table 1, of the models whose weights were released: (top-1, top-5) in percent.
TABLE_1 = {"convit_tiny": (73.1, 91.7), "convit_small": (81.3, 95.7), "convit_base": (82.4, 95.9)}

# σ(λ) of each head, by layer from 1, as in the titles of the paper's attention maps.
GATES_SOURCE = {"convit_tiny": "paper, Fig. 16", "convit_small": "paper, Fig. 17"}
GATES: dict[str, dict[int, tuple[float, ...]]] = {
    "convit_tiny": {2: (0.00, 0.09, 0.51, 0.73), 10: (0.0,) * 4},
    "convit_small": {
        1: (0.01, 0.52, 0.01, 0.00, 0.04, 0.92, 0.07, 0.01, 0.07),
        4: (0.00, 0.82, 0.03, 0.82, 0.14, 0.84, 0.75, 0.00, 0.34),
        7: (0.15, 0.00, 0.59, 0.00, 0.04, 0.02, 0.04, 0.00, 0.00),
        10: (0.0,) * 9,
    },
}

# Number of images that count in an evaluation on each of the datasets of `published`.
NUM_IMAGES = {
    "imagenet2012": imagenet.NUM_VALIDATION_IMAGES,
    "imagenet2012_real": 46_837,  # the others have no label
    "imagenet_v2": 10_000,
    "imagenet_a": 7_500,
    "imagenet_r": 30_000,
    "imagenet_sketch": 50_889,
    "imagenet_a clean": 10_000,
    "imagenet_r clean": 10_000,
}


def published(model: str, dataset: str, mask: tuple[str, int] = NO_MASK) -> Published | None:
    """Return the published result of a model, or None.

    Args:
        model: one of `convit_jax.list_models()`.
        dataset: name in TFDS: imagenet2012, imagenet2012_real, imagenet_v2, imagenet_a,
            imagenet_r or imagenet_sketch; "imagenet_a clean" and "imagenet_r clean" for the
            ImageNet validation images of their classes.
        mask: ("pos_embed", 0), ("content", layers), ("position", layers) or `NO_MASK`.
    """
    if dataset == "imagenet2012" and (model, *mask) in _PAPER:
        return _PAPER[model, *mask]
    family, _, size = model.partition("_")
    if family not in _CROPS or dataset not in _TIMM_DEIT or size not in _SIZES or mask != NO_MASK:
        return None
    if family == "deit":
        return Published(_TIMM, _TIMM_DEIT[dataset][_SIZES.index(size)])
    accuracies = _TIMM_CONVIT[dataset][_SIZES.index(size)]
    return Published(_TIMM, *accuracies) if accuracies else None


def is_published_preprocessing(model: str, preprocessing: Preprocessing) -> bool:
    """Return whether the preprocessing is that of the model's published results."""
    return (
        preprocessing.crop_fraction in _CROPS.get(model.partition("_")[0], ())
        and tuple(preprocessing.mean) == imagenet.MEAN
        and tuple(preprocessing.std) == imagenet.STD
    )


def tfds_name(name: str) -> str:
    """Return the dataset of a tfds: name: tfds:imagenet_v2/topimages:test → imagenet_v2; or ""."""
    kind, *parts = name.split(":")
    return parts[0].partition("/")[0] if kind == "tfds" and parts else ""


def known_dataset(name: str, source: data.Source, classes_of: str | None) -> str:
    """Return the dataset's name for `published`, or "" if it is not a complete known dataset.

    Args:
        name: name of the data, `tfds:…`, `folder:…` or `wds:…`.
        source: the opened data, labelled with the model's classes.
        classes_of: name of the data to whose classes the evaluation is restricted, or None.
    """
    known = tfds_name(name)
    if name.startswith(("folder:", "wds:")):
        # What has ImageNet's classes and as many images is taken for its validation set.
        complete = (
            imagenet.is_imagenet(source.class_names)
            and len(source) == imagenet.NUM_VALIDATION_IMAGES
        )
        known = "imagenet2012" if complete else ""
    elif known == "imagenet2012" and name.split(":")[2] != "validation":
        known = ""
    if "[" in name or (known == "imagenet_v2" and "/matched-frequency" not in name):
        known = ""
    if classes_of:
        known = f"{tfds_name(classes_of)} clean" if known == "imagenet2012" else ""
    return known
