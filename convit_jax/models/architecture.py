"""What a model is made of: one frozen record from which it can be built again."""

import dataclasses
import math
from typing import Any

from convit_jax.errors import InputError
from convit_jax.values.ranges import Range

DTYPES = ("float32", "bfloat16")
# More are a slip of the keyboard, or a garbled file: merely to write the model down would take
# minutes, and the position weights of a head no machine's memory has room for.
MOST_LAYERS, MOST_PATCHES = 256, 2**16

# Fields that only GPSA layers read; setting one for a model without such layers is a mistake.
GPSA_FIELDS = ("locality_strength", "conv_init", "use_gating")


def _field(meaning: str, default: Any = dataclasses.MISSING, **bounds: Any) -> Any:
    metadata = {"help": meaning, "range": Range(**bounds)}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """Every choice that fixes a model's parameters and arithmetic.

    ConViT and DeiT are the same stack of blocks: `gpsa_layers` says how many of them are gated
    positional, and the class token joins after those. DeiT has none, so its class token comes
    first, and it has a position of its own there (`class_token_position`).
    """

    num_heads: int = _field("attention heads a layer", at_least=1)
    head_dim: int = _field(
        "channels a head; the width is num_heads x head_dim", default=48, at_least=1
    )
    depth: int = _field("layers", default=12, at_least=1, at_most=MOST_LAYERS)
    gpsa_layers: int = _field(
        "how many of the first layers are GPSA; the class token joins after them (where all are, "
        "none joins and the first patch is classified, as in the released code)",
        default=10,
        at_least=0,
    )
    mlp_ratio: float = _field(
        "hidden width of the feed-forward network over the width", default=4.0, above=0
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
        "give the class token an absolute position too (DeiT: 197 rows, not 196)", default=False
    )
    drop_rate: float = _field(
        "dropout after projections and positions", default=0.0, at_least=0, below=1
    )
    drop_path_rate: float = _field(
        "stochastic depth: chance of skipping a residual branch, from 0 in the first layer "
        "linearly to this in the last",
        default=0.0,
        at_least=0,
        below=1,
    )
    dtype: str = _field(
        "type of the arithmetic: float32 or bfloat16", default="float32", one_of=DTYPES
    )
    remat: bool = _field(
        "recompute each block in the backward pass rather than store it", default=False
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            field.metadata["range"].check(getattr(self, field.name), field.name)
        _expect(self.gpsa_layers <= self.depth, self, "gpsa_layers", f"0 to {self.depth}")
        _expect(
            self.hidden_width >= 1, self, "mlp_ratio", f"at least {1 / self.width:.3g}, one channel"
        )
        _expect(
            not (self.class_token_position and self.gpsa_layers),
            self,
            "class_token_position",
            "False where the class token joins late (gpsa_layers > 0)",
        )
        _check_image_size(self.image_size, self.patch_size)

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.num_heads * self.head_dim

    @property
    def hidden_width(self) -> int:
        """Channels inside the feed-forward network."""
        # A ratio that two whole widths have comes back as the width that it was taken of.
        return int(self.width * self.mlp_ratio + 1e-6)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def position_rows(self) -> int:
        """Rows of the absolute position embedding."""
        return self.grid[0] * self.grid[1] + self.class_token_position

    @property
    def has_class_token(self) -> bool:
        """Whether a class token joins at all: it needs a plain layer to look through."""
        return self.gpsa_layers < self.depth


def as_image_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """A side of a square, or (height, width), as (height, width)."""
    return (size, size) if isinstance(size, int) else tuple(size)


def _expect(holds: bool, record: Architecture, name: str, expected: str) -> None:
    if not holds:
        raise InputError(f"{name}={getattr(record, name)!r}: expected {expected}")


def _check_image_size(image_size: tuple[int, int], patch_size: int) -> None:
    if len(image_size) != 2 or min(image_size) < 1:
        raise InputError(f"image_size={image_size}: expected a side or (height, width) in pixels")
    patches = math.prod(side // patch_size for side in image_size)
    if patches > MOST_PATCHES:
        raise InputError(
            f"image_size={tuple(image_size)} is {patches:,} patches of {patch_size} pixels: "
            f"expected at most {MOST_PATCHES:,}"
        )
    fitting = tuple(max(1, round(side / patch_size)) * patch_size for side in image_size)
    if fitting != tuple(image_size):
        raise InputError(
            f"image_size={tuple(image_size)} is not a whole number of {patch_size}-pixel patches: "
            f"the nearest size that is, is {fitting}"
        )
