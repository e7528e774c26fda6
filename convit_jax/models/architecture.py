"""The architecture of a model: one frozen record from which the model can be rebuilt."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from convit_jax.errors import InputError
from convit_jax.values.ranges import Range

DTYPES = ("float32", "bfloat16")
# `RIVALS` give a plain transformer the bias of a convolution by initialisation alone.
RIVALS = ("mimetic", "impulse")
INITS = ("default", "convolutional", *RIVALS)
# Larger values are a typing mistake or a damaged file: building the model's structure alone would
# take minutes, and the positional attention of one head would not fit any machine's memory.
MAX_LAYERS, MAX_PATCHES = 256, 2**16

_NO_IMAGE_SIZE = "image_size={}: expected a side or (height, width) in pixels"

# Fields that only GPSA layers use; setting one for a model without such layers is a mistake.
GPSA_FIELDS = ("locality_strength", "conv_init", "use_gating", "positional_attention")


def _field(default: Any, meaning: str, **bounds: Any) -> Any:
    metadata = {"help": meaning, "range": Range(**bounds)}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """All the choices that determine a model's parameters and arithmetic.

    ConViT and DeiT are the same stack of blocks: the first `gpsa_layers` of them use gated
    positional self-attention, and the class token is appended after those. DeiT has none, so its
    class token is present from the start and has its own position (`class_token_position`). A
    distillation token is always beside the class token.
    """

    num_heads: int = _field(dataclasses.MISSING, "attention heads per layer", at_least=1)
    head_dim: int = _field(48, "channels per head; the width is num_heads x head_dim", at_least=1)
    depth: int = _field(12, "layers", at_least=1, at_most=MAX_LAYERS)
    gpsa_layers: int = _field(
        10,
        "number of GPSA layers, which come first; the class token is appended after them (if all "
        "layers are GPSA, there is none and the first patch is classified, as in the released "
        "code)",
        at_least=0,
    )
    mlp_ratio: float = _field(
        4.0, "hidden width of the feed-forward network divided by the width", above=0
    )
    qkv_bias: bool = _field(False, "biases for queries, keys and values")
    patch_size: int = _field(16, "side of a patch, in pixels", at_least=1)
    in_channels: int = _field(3, "channels of an image", at_least=1)
    image_size: tuple[int, int] = _field((224, 224), "(height, width) in pixels")
    num_classes: int = _field(1000, "classes; 0: no head, for features", at_least=0)
    locality_strength: float = _field(
        1.0, "α of the convolutional initialisation (paper Eq. 5), in 1/patches²", at_least=0
    )
    conv_init: bool = _field(True, "start GPSA layers as convolutions (paper Eq. 5)")
    init: str = _field(
        "default",
        "how attention starts. default: GPSA layers by conv_init, plain layers from small random "
        "values; convolutional: the same, but refused unless GPSA layers start as convolutions. "
        "Without GPSA layers also mimetic (products of weights near ± the identity: Trockman & "
        "Kolter 2023) or impulse (each head attends to one random neighbour: Zheng et al. 2024), "
        "both with sinusoidal positions",
        one_of=INITS,
    )
    use_gating: bool = _field(True, "learn the gates; otherwise they stay at one half")
    positional_attention: str = _field(
        "gated",
        "how GPSA layers add position to content. gated: two softmaxes, mixed by a gate (GPSA, "
        "paper Eq. 7); vanilla: one softmax of the sum of both scores (PSA, paper Eq. 4 and Fig. "
        "9), without gates",
        one_of=("gated", "vanilla"),
    )
    use_pos_embed: bool = _field(True, "add absolute positions to the patches")
    class_token_position: bool = _field(
        False,
        "add an absolute position to the class token too (DeiT: 197 rows, not 196; DeiT III has "
        "none)",
    )
    distillation_token: bool = _field(
        False,
        "a second token, after the class token, with its own head; the logits are the mean of both "
        "heads' (Touvron et al. 2021, DeiT)",
    )
    layer_scale: float = _field(
        0.0,
        "initial value of learned factors, one for each channel of every residual branch "
        "(LayerScale: Touvron et al. 2021, CaiT, Eq. 4); 0: no such factors",
        at_least=0,
    )
    drop_rate: float = _field(0.0, "dropout after projections and positions", at_least=0, below=1)
    drop_path_rate: float = _field(
        0.0,
        "stochastic depth: probability of skipping a residual branch, increasing linearly from 0 "
        "in the first layer to this value in the last",
        at_least=0,
        below=1,
    )
    dtype: str = _field("float32", "type of the arithmetic: float32 or bfloat16", one_of=DTYPES)
    remat: bool = _field(False, "recompute each block in the backward pass instead of storing it")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            field.metadata["range"].check(getattr(self, field.name), field.name)
        self._require(self.gpsa_layers <= self.depth, "gpsa_layers", f"0 to {self.depth}")
        expected = f"at least {1 / self.width:.3g}, one channel"
        self._require(self.hidden_width >= 1, "mlp_ratio", expected)
        expected = "False if the class token is appended after GPSA layers (gpsa_layers > 0)"
        fits = not (self.class_token_position and self.gpsa_layers)
        self._require(fits, "class_token_position", expected)
        expected = "False if all layers are GPSA, since there is no class token either"
        fits = not self.distillation_token or self.gpsa_layers < self.depth
        self._require(fits, "distillation_token", expected)
        fits = self.use_gating or self.positional_attention == "gated"
        expected = "True, or positional_attention='gated': vanilla attention has no gates"
        self._require(fits, "use_gating", expected)
        _check_image_size(self.image_size, self.patch_size)
        self._check_init()

    def _check_init(self) -> None:
        """Check that `init` suits the layers and contradicts no other field."""
        if self.init == "convolutional":
            self._require(self.gpsa_layers > 0, "init", "a model with GPSA layers")
            self._require(self.conv_init, "init", "conv_init=True, or another init")
        elif self.init in RIVALS:
            expected = "a model without GPSA layers, such as a DeiT: they have a start of their own"
            self._require(self.gpsa_layers == 0, "init", expected)
            expected = f"a width (num_heads x head_dim) that is a multiple of 4, not {self.width}"
            self._require(self.width % 4 == 0 or not self.use_pos_embed, "init", expected)
        if self.init == "impulse":
            expected = "use_pos_embed=True, since each head attends to a position"
            self._require(self.use_pos_embed, "init", expected)
            expected = f"at least 2 x 2 patches, not {self.grid[0]} x {self.grid[1]}"
            self._require(min(self.grid) > 1, "init", expected)

    def _require(self, condition: bool, name: str, expected: str) -> None:
        if not condition:
            raise InputError(f"{name}={getattr(self, name)!r}: expected {expected}")

    @property
    def width(self) -> int:
        """Channels per token."""
        return self.num_heads * self.head_dim

    @property
    def hidden_width(self) -> int:
        """Hidden channels of the feed-forward network."""
        # The small term undoes rounding: a ratio of two integer widths gives the integer again.
        return int(self.width * self.mlp_ratio + 1e-6)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def position_rows(self) -> int:
        """Rows of the absolute position embedding."""
        class_rows = self.num_class_tokens if self.class_token_position else 0
        return self.grid[0] * self.grid[1] + class_rows

    @property
    def has_layer_scale(self) -> bool:
        """Whether there are LayerScale's factors."""
        return self.layer_scale > 0

    @property
    def num_class_tokens(self) -> int:
        """Tokens before the patches in the last layer: the class token, the distillation token."""
        return 0 if self.gpsa_layers == self.depth else 1 + self.distillation_token


# timm's spellings of fields.
_TIMM_FIELDS = {"in_chans": "in_channels", "img_size": "image_size"}


def in_our_spelling(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields of `Architecture` with timm's names for them replaced.

    Raises:
        InputError: a field is given by both names.
    """
    for theirs, ours in _TIMM_FIELDS.items():
        if theirs in fields and ours in fields:
            raise InputError(f"{theirs} and {ours} are the same field: expected one of them")
    return {_TIMM_FIELDS.get(name, name): value for name, value in fields.items()}


def as_image_size(size: int | Sequence[int]) -> tuple[int, int]:
    """Return (height, width) for the side of a square or for (height, width).

    Raises:
        InputError: it is neither.
    """
    match size:
        case int():
            return size, size
        case (height, width):
            return height, width
    raise InputError(_NO_IMAGE_SIZE.format(size))


def _check_image_size(image_size: tuple[int, int], patch_size: int) -> None:
    if len(image_size) != 2 or min(image_size) < 1:
        raise InputError(_NO_IMAGE_SIZE.format(image_size))
    patches = math.prod(side // patch_size for side in image_size)
    if patches > MAX_PATCHES:
        raise InputError(
            f"image_size={tuple(image_size)} is {patches:,} patches of {patch_size} pixels: "
            f"expected at most {MAX_PATCHES:,}"
        )
    fitting = tuple(max(1, round(side / patch_size)) * patch_size for side in image_size)
    if fitting != tuple(image_size):
        raise InputError(
            f"image_size={tuple(image_size)} is not a whole number of {patch_size}-pixel patches: "
            f"the nearest size that fits is {fitting}"
        )
