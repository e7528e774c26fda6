"""How well a run uses its devices."""

from collections.abc import Callable

from jax.sharding import Mesh

from convit_jax.models import training_flops
from convit_jax.system.peak_flops import peak_flops
from convit_jax.training.experiment import Experiment


def step_flops(experiment: Experiment) -> float:
    """Return the floating-point operations of a step for each image, the teacher's included."""
    teacher = experiment.teacher
    of_teacher = 0.0 if teacher is None else teacher.forward_flops()
    return training_flops(experiment.architecture, experiment.trainable) + of_teacher


def make_utilisation(experiment: Experiment, mesh: Mesh) -> Callable[[float], dict[str, float]]:
    """Return a function from images per second to `mfu`, or to nothing if the peak is not known.

    `mfu` is model FLOP utilisation (Chowdhery et al. 2022): the operations of one forward and one
    backward pass, whatever is recomputed, and of a
    teacher's forward pass, as a share of what the devices could do at their peak.
    """
    a = experiment.architecture
    peak = peak_flops(mesh.devices.flat[0].device_kind, a.dtype)
    if peak is None:
        return lambda images_per_second: {}
    share = step_flops(experiment) / (mesh.size * peak)
    return lambda images_per_second: {"mfu": share * images_per_second}
