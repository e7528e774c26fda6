"""Distillation: a loss that includes the predictions of a teacher (Touvron et al. 2021, DeiT)."""

import dataclasses
import logging
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from convit_jax.config import Config, architecture
from convit_jax.config.distill_keys import DistillConfig
from convit_jax.data.images.preprocessing import Preprocessing
from convit_jax.errors import naming
from convit_jax.kernels import Form
from convit_jax.training.losses import Loss, mean_loss
from convit_jax.weights.teachers import Teacher, open_teacher

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Distillation:
    """How a teacher's logits enter the loss.

    Attributes:
        alpha: share of the teacher's term.
        temperature: of both models' probabilities, for soft distillation; None for hard.
    """

    alpha: float = 0.5
    temperature: float | None = None

    @classmethod
    def of(cls, config: DistillConfig) -> "Distillation":
        """Return the distillation that a config describes."""
        return cls(config.alpha, config.temperature if config.kind == "soft" else None)


def distilled_loss(
    logits: Sequence[jax.Array],
    labels: jax.Array,
    teacher_logits: jax.Array,
    loss: Loss,
    distillation: Distillation,
) -> jax.Array:
    """Return (1 - α) · loss of the labels + α · loss of the teacher, means over the images.

    The class token learns from the labels. The distillation token learns from the teacher, if there
    is one, and otherwise the class token does.

    Args:
        logits: of each head, [B, num_classes]: the class token's, the distillation token's.
        labels: [B, num_classes], from 0 to 1, mixed and smoothed.
        teacher_logits: [B, num_classes].
        loss: the loss of the labels, with its class weights.
        distillation: the loss of the teacher.
    """
    base = mean_loss(logits[0], labels, loss)
    of_teacher = teacher_loss(logits[-1], teacher_logits, distillation.temperature)
    return (1 - distillation.alpha) * base + distillation.alpha * of_teacher


def teacher_loss(
    logits: jax.Array, teacher_logits: jax.Array, temperature: float | None
) -> jax.Array:
    """Return the loss of the teacher's predictions, a mean over the images.

    With z the logits, t the teacher's and T the temperature, in Touvron et al. 2021:

        hard   -log softmax(z)_c,  c = argmax t                 (eq. 3; no label smoothing)
        soft   T² KL(softmax(t / T) ‖ softmax(z / T))           (eq. 2)

    The divergence has the direction of DeiT's code and of Hinton et al. 2015: the expectation is
    the teacher's. (DeiT's code also divides it by the number of classes; here and in the paper it
    is not.)

    Args:
        logits, teacher_logits: [B, num_classes].
        temperature: T; None for hard.
    """
    if temperature is None:
        predicted = teacher_logits.argmax(axis=-1)
        return optax.softmax_cross_entropy_with_integer_labels(logits, predicted).mean()
    of_student, of_teacher = (
        jax.nn.log_softmax(values / temperature) for values in (logits, teacher_logits)
    )
    divergence = jnp.sum(jnp.exp(of_teacher) * (of_teacher - of_student), axis=-1)
    return temperature**2 * divergence.mean()


def open_config_teacher(
    config: Config,
    num_classes: int,
    class_names: Sequence[str] | None = None,
    *,
    mesh: Mesh | None = None,
    attention: Form | None = None,
) -> Teacher | None:
    """Return the teacher that a config names, or None if it names none.

    Args:
        config: the configuration.
        num_classes: number of classes of the training data.
        class_names: their names, if the data are at hand.
        mesh: the devices that the teacher will be compiled for; None for the default one.
        attention: the form of attention, to override the config's.

    Raises:
        InputError: there is no such teacher, or it does not fit the run.
        MachineError: the machine cannot read it.
    """
    if not config.distill.teacher:
        return None
    a, d = architecture(config, num_classes), config.data
    with naming("config.distill.teacher"):
        teacher = open_teacher(
            config.distill.teacher,
            Preprocessing(a.image_size, d.eval_crop, d.mean, d.std),
            dtype=a.dtype,
            mesh=mesh,
            form=attention or config.attention,
        )
        teacher.check_classes(num_classes, class_names)
    second = "distillation" if a.distillation_token else "class"
    log.info("%s distillation from %s into the %s token", config.distill.kind, teacher.name, second)
    return teacher
