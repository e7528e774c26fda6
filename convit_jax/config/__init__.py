"""Configuration: every key, config files, and the checked, frozen result."""

from convit_jax.config.data_keys import AugmentConfig as AugmentConfig
from convit_jax.config.data_keys import DataConfig as DataConfig
from convit_jax.config.keys import GPSA_ATTENTION as GPSA_ATTENTION
from convit_jax.config.keys import NO_DECAY as NO_DECAY
from convit_jax.config.keys import SEEDS as SEEDS
from convit_jax.config.keys import CheckpointConfig as CheckpointConfig
from convit_jax.config.keys import Config as Config
from convit_jax.config.keys import OptimizerConfig as OptimizerConfig
from convit_jax.config.keys import architecture as architecture
from convit_jax.config.keys import as_saved as as_saved
from convit_jax.config.keys import duration_in_steps as duration_in_steps
from convit_jax.config.keys import get as get
from convit_jax.config.keys import resolve as resolve
from convit_jax.config.keys import template as template
