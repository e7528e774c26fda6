"""Training: an experiment put together, its steps, its checkpoints and the loop around them.

`training.loop.train` runs it all. It is not imported here: it brings TensorFlow, for its events.
"""

from convit_jax.training.examples import open_training_data, open_training_examples
from convit_jax.training.experiment import Experiment, make_experiment
from convit_jax.training.step import TrainState

__all__ = [
    "Experiment",
    "TrainState",
    "make_experiment",
    "open_training_data",
    "open_training_examples",
]
