"""The architecture of a model: one frozen record from which the model can be rebuilt."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from convit_jax.errors import InputError
from convit_jax.values.ranges import Range

DTYPES = ("float32", "bfloat16")
# Larger values are a typing mistake or a damaged file: building the model's structure alone would
# take minutes, and the positional attention of one head would not fit any machine's memory.
MAX_LAYERS, MAX_PATCHES = 256, 2**16

_NO_IMAGE_SIZE = "image_size={}: expected a side or (height, width) in pixels"

# Fields that only GPSA layers use; setting one for a model without such layers is a mistake.
GPSA_FIELDS = ("locality_strength", "conv_init", "use_gating")


def _field(meaning: str, default: Any = dataclasses.MISSING, **bounds: Any) -> Any:
    metadata = {"help": meaning, "range": Range(**bounds)}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """All the choices that determine a model's parameters and arithmetic.

    ConViT and DeiT are the same stack of blocks: the first `gpsa_layers` of them use gated
    positional self-attention, and the class token is appended after those. DeiT has none, so its
    class token is present from the start and has its own position (`class_token_position`).
    """

    num_heads: int = _field("attention heads per layer", at_least=1)
    head_dim: int = _field(
        "channels per head; the width is num_heads x head_dim", default=48, at_least=1
    )
    depth: int = _field("layers", default=12, at_least=1, at_most=MAX_LAYERS)
    gpsa_layers: int = _field(
        "number of GPSA layers, which come first; the class token is appended after them (if all "
        "layers are GPSA, there is none and the first patch is classified, as in the released "
        "code)",
        default=10,
        at_least=0,
    )
    mlp_ratio: float = _field(
        "hidden width of the feed-forward network divided by the width", default=4.0, above=0
    )
    qkv_bias: bool = _field("biases for queries, keys and values", default=False)
    patch_size: int = _field("side of a patch, in pixels", default=16, at_least=1)
    in_channels: int = _field("channels of an image", default=3, at_least=1)
    image_size: tuple[int, int] = _field("(height, width) in pixels", default=(224, 224))
    num_classes: int = _field("classes", default=1000, at_least=1)
    locality_strength: float = _field(
        "α of the convolutional initialisation (paper Eq. 5), in 1/patches²",
        default=1.0,
        at_least=0,
    )
    conv_init: bool = _field("start GPSA layers as convolutions (paper Eq. 5)", default=True)
    use_gating: bool = _field("learn the gates; otherwise they stay at one half", default=True)
    use_pos_embed: bool = _field("add absolute positions to the patches", default=True)
    class_token_position: bool = _field(
        "add an absolute position to the class token too (DeiT: 197 rows, not 196)", default=False
    )
    drop_rate: float = _field(
        "dropout after projections and positions", default=0.0, at_least=0, below=1
    )
    drop_path_rate: float = _field(
        "stochastic depth: probability of skipping a residual branch, increasing linearly from 0 "
        "in the first layer to this value in the last",
        default=0.0,
        at_least=0,
        below=1,
    )
    dtype: str = _field(
        "type of the arithmetic: float32 or bfloat16", default="float32", one_of=DTYPES
    )
    remat: bool = _field(
        "recompute each block in the backward pass instead of storing it", default=False
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            field.metadata["range"].check(getattr(self, field.name), field.name)
        _require(self.gpsa_layers <= self.depth, self, "gpsa_layers", f"0 to {self.depth}")
        _require(
            self.hidden_width >= 1, self, "mlp_ratio", f"at least {1 / self.width:.3g}, one channel"
        )
        _require(
            not (self.class_token_position and self.gpsa_layers),
            self,
            "class_token_position",
            "False if the class token is appended after GPSA layers (gpsa_layers > 0)",
        )
        _check_image_size(self.image_size, self.patch_size)

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
        return self.grid[0] * self.grid[1] + self.class_token_position


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


def _require(condition: bool, architecture: Architecture, name: str, expected: str) -> None:
    if not condition:
        raise InputError(f"{name}={getattr(architecture, name)!r}: expected {expected}")


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
