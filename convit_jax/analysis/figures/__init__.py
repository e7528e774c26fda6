"""Figures like the paper's: functions of plain arrays that return matplotlib figures.

None of them uses pyplot or changes global settings. Save a figure with
`figure.savefig("gates.pdf")`; a notebook displays the returned figure.
"""

from convit_jax.analysis.figures.curves import (
    gates_by_layer,
    gates_over_training,
    nonlocality_by_layer,
    nonlocality_over_training,
)
from convit_jax.analysis.figures.efficiency import locality_grid, relative_errors, sample_efficiency
from convit_jax.analysis.figures.maps import AttentionRow, attention_maps, positional_maps
from convit_jax.analysis.figures.masks import accuracy_under_masks
from convit_jax.analysis.figures.overlays import Overlay, overlays
from convit_jax.analysis.figures.training import accuracy_by_gpsa_layers, accuracy_over_training
