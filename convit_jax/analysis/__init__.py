"""What a trained model has learned, and what becomes of it without a part of that."""

from convit_jax.analysis.masking import mask_content, mask_pos_embed, mask_position
from convit_jax.analysis.published import (
    NO_MASK,
    Published,
    known_dataset,
    published,
    tfds_name,
)

__all__ = [
    "NO_MASK",
    "Published",
    "known_dataset",
    "mask_content",
    "mask_pos_embed",
    "mask_position",
    "published",
    "tfds_name",
]
