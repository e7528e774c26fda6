"""Configuration: every key, config files, and the checked, frozen result."""

from convit_jax.config.data_keys import AugmentConfig, DataConfig
from convit_jax.config.keys import (
    SEEDS,
    CheckpointConfig,
    Config,
    EarlyStoppingConfig,
    architecture,
    as_saved,
    duration_in_steps,
    get,
    resolve,
    template,
)
from convit_jax.config.optimizer_keys import GPSA_ATTENTION, NO_DECAY, OptimizerConfig
