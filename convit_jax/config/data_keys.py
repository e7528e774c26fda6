"""The keys of `config.data` and `config.augment`: which images, and what happens to them."""

import dataclasses
from typing import Any

from convit_jax.config.typed import key
from convit_jax.data.images.transforms import CROPS
from convit_jax.data.reading import EXIF_ROTATIONS
from convit_jax.data.sources import imagenet
from convit_jax.values.ranges import when

_CHANCE: dict[str, Any] = {"at_least": 0, "at_most": 1}
_SPAN: dict[str, Any] = {"lengths": (2,), "ascending": True, "above": 0}

_RANDOM_CROP = when("augment.crop", one_of=("random_resized",))
_PADDED = when("augment.crop", one_of=("pad",))
_ERASED = when("augment.erase", above=0)
_MIXED_UP, _CUT_AND_MIXED = when("augment.mixup", above=0), when("augment.cutmix", above=0)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which images, and how they are read."""

    train: str = key(
        "digits:train",
        "training examples: tfds:NAME:SPLIT[:DATA_DIR], folder:PATH or digits:train",
        fixed=True,
    )
    eval: str = key("digits:test", "examples to evaluate on, named likewise")
    fraction: float = key(
        1.0,
        "share of each class's training examples that is used (paper Table 2)",
        fixed=True,
        above=0,
        at_most=1,
    )
    holdout: float = key(
        0.0,
        "share of each class's training examples that is kept from training and evaluated on, "
        "where data.eval is ''",
        fixed=True,
        at_least=0,
        below=1,
    )
    fraction_choice: str = key(
        "first",
        "which ones: 'first' int(n f) of each class by file name, as in the paper, or 'random' "
        "by the seed",
        fixed=True,
        one_of=("first", "random"),
        read_if=(when("data.fraction", below=1),),
    )
    classes: int = key(
        0, "use only the first so many classes; 0: all", fixed=True, at_least=2, also=(0,)
    )
    image_size: tuple[int, ...] = key(
        (224,),
        "(side,) or (height, width) of the images the model sees, in pixels",
        fixed=True,
        lengths=(1, 2),
        at_least=1,
    )
    eval_crop: float = key(
        imagenet.CROP_FRACTION,
        "share of the side that evaluation keeps, of the image scaled to fit: 224 of 256",
        above=0,
        at_most=1,
    )
    mean: tuple[float, ...] = key(
        imagenet.MEAN,
        "subtracted from images scaled to [0, 1], for each channel",
        fixed=True,
        at_least=0,
        at_most=1,
    )
    std: tuple[float, ...] = key(
        imagenet.STD, "then divided by, for each channel", fixed=True, above=0, at_most=1
    )
    max_broken: float = key(
        0.001,
        "share of the examples that may be unreadable before the run stops",
        at_least=0,
        below=1,
    )
    exif_rotation: str = key(
        "auto",
        "whether photographs are turned upright as their EXIF says: 'honour', 'ignore', or 'auto': "
        "those of folder: are, those of tfds: are not, as published accuracies were measured",
        one_of=EXIF_ROTATIONS,
    )
    num_workers: int = key(
        0,
        "processes that read and augment; 0: a thread of this one, -1: one for each core",
        at_least=0,
        at_most=1024,
        also=(-1,),
    )
    prefetch_batches: int = key(2, "batches prepared ahead", at_least=1)


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """What happens to a training image; the defaults only scale it."""

    repeats: int = key(
        1,
        "repeated augmentation: views of each image, while an epoch keeps its number of steps",
        fixed=True,
        at_least=1,
        at_most=64,
    )
    crop: str = key(
        "none",
        "'random_resized' (a random part, scaled), 'pad' (moved a little, for small images) or "
        "'none' (scaled as a whole)",
        one_of=CROPS,
    )
    crop_scale: tuple[float, ...] = key(
        (0.08, 1.0),
        "share of the area that a random part has",
        **_SPAN,
        at_most=1,
        read_if=(_RANDOM_CROP,),
    )
    crop_ratio: tuple[float, ...] = key(
        (3 / 4, 4 / 3), "its width over its height", **_SPAN, read_if=(_RANDOM_CROP,)
    )
    crop_padding: int = key(
        4,
        "pixels that 'pad' may move an image, each way",
        at_least=0,
        read_if=(_PADDED,),
    )
    flip: float = key(0.0, "chance of a horizontal flip", **_CHANCE)
    randaugment: str = key(
        "", "RandAugment in timm's notation, 'rand-m9-mstd0.5-inc1'; '' for none"
    )
    rotate: float = key(0.0, "largest rotation either way, in degrees", at_least=0, at_most=180)
    zoom: float = key(
        0.0,
        "largest change of scale either way, as a share: 0.1 is 0.9 to 1.1",
        at_least=0,
        below=1,
    )
    shear: float = key(0.0, "largest shear either way, in degrees", at_least=0, below=90)
    translate: float = key(
        0.0, "largest shift either way and axis, as a share of the side", at_least=0, at_most=1
    )
    erase: float = key(0.0, "chance of random erasing, after normalisation, by noise", **_CHANCE)
    erase_area: tuple[float, ...] = key(
        (0.02, 1 / 3),
        "share of the area that is erased",
        **_SPAN,
        at_most=1,
        read_if=(_ERASED,),
    )
    erase_ratio: tuple[float, ...] = key(
        (0.3, 1 / 0.3),
        "its height over its width",
        **_SPAN,
        read_if=(_ERASED,),
    )
    mixup: float = key(0.0, "α of mixup's Beta(α, α); 0: none", at_least=0)
    cutmix: float = key(0.0, "α of CutMix's Beta(α, α); 0: none", at_least=0)
    mix_prob: float = key(
        1.0,
        "chance that a batch is mixed",
        **_CHANCE,
        read_if=(when("augment.mixup", "augment.cutmix", above=0),),
    )
    mix_switch_prob: float = key(
        0.5,
        "chance of CutMix rather than mixup, where there are both",
        **_CHANCE,
        read_if=(_MIXED_UP, _CUT_AND_MIXED),
    )
