"""Training: building an experiment, its steps, its checkpoints and the loop around them.

The entry point is `training.loop.train`. It is not imported here because it imports TensorFlow,
which writes the event files.
"""

from convit_jax.training.examples import open_training_data, open_training_examples
from convit_jax.training.experiment import Experiment, make_experiment
from convit_jax.training.step import TrainState
