"""Figures like the paper's: functions of plain arrays that return matplotlib figures.

None of them uses pyplot or changes global settings. Save a figure with
`figure.savefig("gates.pdf")`; a notebook displays the returned figure.
"""

from convit_jax.analysis.figures.curves import gates_by_layer as gates_by_layer
from convit_jax.analysis.figures.curves import gates_over_training as gates_over_training
from convit_jax.analysis.figures.curves import nonlocality_by_layer as nonlocality_by_layer
from convit_jax.analysis.figures.curves import (
    nonlocality_over_training as nonlocality_over_training,
)
from convit_jax.analysis.figures.efficiency import locality_grid as locality_grid
from convit_jax.analysis.figures.efficiency import sample_efficiency as sample_efficiency
from convit_jax.analysis.figures.maps import AttentionRow as AttentionRow
from convit_jax.analysis.figures.maps import attention_maps as attention_maps
from convit_jax.analysis.figures.maps import positional_maps as positional_maps
from convit_jax.analysis.figures.masks import accuracy_under_masks as accuracy_under_masks
