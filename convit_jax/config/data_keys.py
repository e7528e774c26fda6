"""The keys of `config.data` and `config.augment`: images and their augmentation."""

import dataclasses
from typing import Any

from convit_jax.config.typed import fixed_key, key
from convit_jax.data.images.transforms import CROPS
from convit_jax.data.reading import EXIF_ROTATIONS
from convit_jax.data.sources import imagenet
from convit_jax.values.ranges import when

FROM_0_TO_1: dict[str, Any] = {"at_least": 0, "at_most": 1}
ABOVE_0_TO_1: dict[str, Any] = {"above": 0, "at_most": 1}
FROM_0_BELOW_1: dict[str, Any] = {"at_least": 0, "below": 1}
_SPAN: dict[str, Any] = {"lengths": (2,), "ascending": True, "above": 0}

_RANDOM_CROP = when("augment.crop", one_of=("random_resized",))
_PADDED = when("augment.crop", one_of=("pad", "simple"))
_ERASED = when("augment.erase", above=0)
_MIXED_UP, _CUT_AND_MIXED = when("augment.mixup", above=0), when("augment.cutmix", above=0)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The images and how they are read."""

    train: str = fixed_key(
        "digits:train",
        "training examples: tfds:NAME:SPLIT[:DATA_DIR], folder:PATH, wds:PATH/x-{0000..1023}.tar, "
        "digits:train or letters:train",
    )
    eval: str = key("digits:test", "examples to evaluate on, named in the same way")
    fraction: float = fixed_key(
        1.0, "share of each class's training examples that is used (paper Table 2)", **ABOVE_0_TO_1
    )
    holdout: float = fixed_key(
        0.0,
        "share of each class's training examples that is held out for evaluation, if data.eval is "
        "''",
        **FROM_0_BELOW_1,
    )
    fraction_choice: str = fixed_key(
        "first",
        "which examples: the 'first' int(n f) of each class by file name, as in the paper, or "
        "'random' by the seed",
        one_of=("first", "random"),
        read_if=(when("data.fraction", below=1),),
    )
    classes: int = fixed_key(
        0, "number of classes to use, from the first; 0: all", at_least=2, also=(0,)
    )
    image_size: tuple[int, ...] = fixed_key(
        (224,),
        "(side,) or (height, width) of the model's input, in pixels",
        lengths=(1, 2),
        at_least=1,
    )
    eval_crop: float = key(
        imagenet.CROP_FRACTION,
        "side of evaluation's centre crop as a share of the scaled image's side: 224 of 256",
        **ABOVE_0_TO_1,
    )
    mean: tuple[float, ...] = fixed_key(
        imagenet.MEAN, "subtracted from images scaled to [0, 1], for each channel", **FROM_0_TO_1
    )
    std: tuple[float, ...] = fixed_key(
        imagenet.STD, "divisor after that, for each channel", **ABOVE_0_TO_1
    )
    max_broken: float = key(
        0.001, "share of the examples that may be unreadable before the run stops", **FROM_0_BELOW_1
    )
    exif_rotation: str = key(
        "auto",
        "whether photographs are rotated upright by their EXIF: 'honour', 'ignore', or 'auto', "
        "which rotates those of folder: but not those of tfds: and wds:, as for published "
        "accuracies",
        one_of=EXIF_ROTATIONS,
    )
    num_workers: int = key(
        0,
        "processes that read and augment; 0: a thread of this process, -1: one for each core",
        at_least=0,
        at_most=1024,
        also=(-1,),
    )
    prefetch_batches: int = key(2, "batches prepared ahead", at_least=1)


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of training images; the defaults only scale them."""

    repeats: int = fixed_key(
        1,
        "repeated augmentation: views of each image; the number of steps in an epoch is unchanged",
        at_least=1,
        at_most=64,
    )
    crop: str = key(
        "none",
        "'random_resized' (a random part, scaled), 'simple' (the shorter side scaled, padded by "
        "reflection, cropped at random: DeiT III's), 'pad' (a random shift, for small images) or "
        "'none' (the whole image, scaled)",
        one_of=CROPS,
    )
    crop_scale: tuple[float, ...] = key(
        (0.08, 1.0),
        "the random part's share of the area",
        **_SPAN,
        at_most=1,
        read_if=(_RANDOM_CROP,),
    )
    crop_ratio: tuple[float, ...] = key(
        (3 / 4, 4 / 3), "the random part's width over its height", **_SPAN, read_if=(_RANDOM_CROP,)
    )
    crop_padding: int = key(
        4,
        "width of the border that 'pad' and 'simple' add before they crop, in pixels",
        at_least=0,
        read_if=(_PADDED,),
    )
    flip: float = key(0.0, "probability of a horizontal flip", **FROM_0_TO_1)
    randaugment: str = key(
        "", "RandAugment in timm's notation, 'rand-m9-mstd0.5-inc1'; '' for none"
    )
    three_augment: bool = key(
        False,
        "3-Augment (Touvron et al. 2022, DeiT III): one of greyscale, solarization and Gaussian "
        "blur, instead of RandAugment",
    )
    colour_jitter: float = key(
        0.0,
        "largest relative change of brightness, contrast and saturation, in random order; DeiT III "
        "has 0.3 after 3-Augment",
        **FROM_0_TO_1,
    )
    rotate: float = key(
        0.0, "largest rotation in either direction, in degrees", at_least=0, at_most=180
    )
    zoom: float = key(0.0, "largest relative change of scale: 0.1 is 0.9 to 1.1", **FROM_0_BELOW_1)
    shear: float = key(0.0, "largest shear, in degrees", at_least=0, below=90)
    translate: float = key(
        0.0, "largest shift along each axis, as a share of the side", **FROM_0_TO_1
    )
    erase: float = key(
        0.0, "probability of random erasing, by noise after normalisation", **FROM_0_TO_1
    )
    erase_area: tuple[float, ...] = key(
        (0.02, 1 / 3), "share of the area to erase", **_SPAN, at_most=1, read_if=(_ERASED,)
    )
    erase_ratio: tuple[float, ...] = key(
        (0.3, 1 / 0.3), "height over width of the erased rectangle", **_SPAN, read_if=(_ERASED,)
    )
    mixup: float = key(0.0, "α of mixup's Beta(α, α); 0: none", at_least=0)
    cutmix: float = key(0.0, "α of CutMix's Beta(α, α); 0: none", at_least=0)
    mix_prob: float = key(
        1.0,
        "probability that a group of rows is mixed",
        **FROM_0_TO_1,
        read_if=(when("augment.mixup", "augment.cutmix", above=0),),
    )
    mix_switch_prob: float = key(
        0.5,
        "probability of CutMix rather than mixup, if both are on",
        **FROM_0_TO_1,
        read_if=(_MIXED_UP, _CUT_AND_MIXED),
    )
    mix_group: int = key(
        0,
        "rows of the batch that share one draw of mixup or CutMix: an even divisor of batch_size; "
        "0, or more than there are: the whole batch. The released code draws on each GPU, for 256 "
        "rows (ConViT-Ti) or 64 (ConViT-B)",
        at_least=2,
        also=(0,),
        read_if=(when("augment.mixup", "augment.cutmix", above=0),),
    )
