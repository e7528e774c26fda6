"""Measurements of what a trained model has learned, and of its accuracy with parts masked."""

from convit_jax.analysis.history import History as History
from convit_jax.analysis.history import read_history as read_history
from convit_jax.analysis.locality import HeadGeometry as HeadGeometry
from convit_jax.analysis.locality import Locality as Locality
from convit_jax.analysis.locality import gates as gates
from convit_jax.analysis.locality import head_geometry as head_geometry
from convit_jax.analysis.locality import measure_locality as measure_locality
from convit_jax.analysis.masking import mask_content as mask_content
from convit_jax.analysis.masking import mask_pos_embed as mask_pos_embed
from convit_jax.analysis.masking import mask_position as mask_position
from convit_jax.analysis.published import NO_MASK as NO_MASK
from convit_jax.analysis.published import Published as Published
from convit_jax.analysis.published import is_published_preprocessing as is_published_preprocessing
from convit_jax.analysis.published import known_dataset as known_dataset
from convit_jax.analysis.published import published as published
from convit_jax.analysis.published import tfds_name as tfds_name
