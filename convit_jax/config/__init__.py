"""Configuration: every key, config files, and the checked, frozen result."""

from convit_jax.config.data_keys import AugmentConfig, DataConfig
from convit_jax.config.keys import (
    GPSA_ATTENTION,
    NO_DECAY,
    SEEDS,
    CheckpointConfig,
    Config,
    OptimizerConfig,
    architecture,
    as_saved,
    duration_in_steps,
    get,
    resolve,
    template,
)
