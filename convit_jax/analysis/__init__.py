"""Measurements of what a trained model has learned, and of its accuracy with parts masked."""

from convit_jax.analysis.history import History, read_history
from convit_jax.analysis.locality import (
    HeadGeometry,
    Locality,
    gates,
    head_geometry,
    measure_locality,
)
from convit_jax.analysis.masking import mask_content, mask_pos_embed, mask_position
from convit_jax.analysis.published import (
    NO_MASK,
    Published,
    is_published_preprocessing,
    known_dataset,
    published,
    tfds_name,
)
