"""Training: an experiment put together, its steps, its checkpoints and the loop around them."""

from convit_jax.training.experiment import Experiment, make_experiment
from convit_jax.training.loop import Outcome, train
from convit_jax.training.step import TrainState

__all__ = ["Experiment", "Outcome", "TrainState", "make_experiment", "train"]
