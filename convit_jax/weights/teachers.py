"""Opening a teacher for distillation: weights of any kind, or an exported program."""

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from convit_jax import models
from convit_jax.data.images.preprocessing import Preprocessing
from convit_jax.data.sources.class_names import describe_difference
from convit_jax.errors import InputError
from convit_jax.kernels import Form, attention_for
from convit_jax.weights.loading import open_weights
from convit_jax.weights.logits_programs import open_program

SUFFIX = ".stablehlo"

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """A trained model in evaluation mode, as a function of a run's images.

    Attributes:
        name: the name that it was opened with.
        params: its parameters, NumPy arrays; {} for a program, which includes them.
        predict: (params, images) → logits, float32 [B, num_classes]. The images are those of the
            run's own model: of its size, and normalised by its mean and standard deviation.
        num_classes: length of the logits.
        class_names: the names of its classes, if it has any.
        digest: SHA-256 of what it computes with, in hexadecimal digits.
        forward_flops: () → floating-point operations of one image.
    """

    name: str
    params: Any
    predict: Callable[[Any, jax.Array], jax.Array]
    num_classes: int
    class_names: tuple[str, ...] | None
    digest: str
    forward_flops: Callable[[], float]

    def abstract_params(self) -> Any:
        """Return the shapes and types of the parameters."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self.params)

    def check_classes(self, num_classes: int, class_names: Sequence[str] | None = None) -> None:
        """Check that the classes are those of the images.

        Args:
            num_classes: their number.
            class_names: their names in the order of the labels, or None if they are not known.

        Raises:
            InputError: the classes differ.
        """
        if self.num_classes != num_classes:
            raise InputError(
                f"the teacher {self.name} has {self.num_classes:,} classes, the data "
                f"{num_classes:,}: expected a teacher of the same classes"
            )
        if self.class_names is None or class_names is None:
            return
        if difference := describe_difference(self.class_names, class_names):
            raise InputError(
                f"the teacher {self.name} was {difference}: expected the same classes in the same "
                "order"
            )


def open_teacher(
    name: str, inputs: Preprocessing, *, dtype: str, mesh: Mesh | None, form: Form = "auto"
) -> Teacher:
    """Open a teacher for images that are prepared for another model.

    Images of another size than the teacher's are resized on the device. A model whose mean and
    standard deviation differ gets the images normalised by its own; a program takes them as they
    are.

    Args:
        name: anything that `load_model` takes, or a program, a file that ends in .stablehlo.
        inputs: the size and the normalisation of the images.
        dtype: of a model's arithmetic: float32 or bfloat16.
        mesh: the devices that it will be compiled for; None for the default one.
        form: of a model's attention; where cuDNN does not support the teacher, XLA's is used.

    Raises:
        InputError: there is no such teacher, it takes images of other channels, or it does not run
            on these devices.
        MachineError: the machine cannot read it.
    """
    if name.endswith(SUFFIX):
        return _open_program(name, inputs, mesh)
    weights = open_weights(name)
    a = weights.architecture(dtype=dtype)
    _check_channels(name, a.in_channels, inputs)
    own = weights.preprocessing(a)
    attend = attention_for(mesh, "auto" if form == "cudnn" else form)
    graph, state = nnx.split(weights.model(dtype=dtype).with_attention(attend), nnx.Param)
    params = jax.tree.map(np.asarray, nnx.to_pure_dict(state))
    renormalise = _renormalisation(name, inputs, own)
    _log_resizing(name, inputs.image_size, a.image_size)

    def predict(params: Any, images: jax.Array) -> jax.Array:
        resized = _resize(renormalise(images), a.image_size)
        return nnx.merge(graph, nnx.State(params))(resized)

    settings = a.num_heads, a.image_size, own.mean, own.std
    arrays = map(np.ascontiguousarray, jax.tree.leaves(params))
    return Teacher(
        name=name,
        params=params,
        predict=predict,
        num_classes=weights.num_classes(),
        class_names=weights.card.class_names,
        digest=_sha256([repr(settings).encode(), *arrays]),
        forward_flops=lambda: models.forward_flops(a),
    )


def _open_program(name: str, inputs: Preprocessing, mesh: Mesh | None) -> Teacher:
    """Return the teacher that a program is."""
    channels = len(inputs.mean)
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    program = open_program(name, (*inputs.image_size, channels), device)
    _check_channels(name, program.shape[2], inputs)
    height, width = program.shape[:2]
    _log_resizing(name, inputs.image_size, (height, width))
    return Teacher(
        name=name,
        params={},
        predict=lambda params, images: program.logits(_resize(images, (height, width))),
        num_classes=program.num_classes,
        class_names=None,
        digest=_sha256([program.content]),
        forward_flops=program.forward_flops,
    )


def _check_channels(name: str, channels: int, inputs: Preprocessing) -> None:
    if channels != len(inputs.mean):
        raise InputError(
            f"the teacher {name} takes images of {channels} channels, the model of "
            f"{len(inputs.mean)}: expected the same"
        )


def _renormalisation(
    name: str, before: Preprocessing, after: Preprocessing
) -> Callable[[jax.Array], jax.Array]:
    """Return the function from images normalised in one way to the same in another."""
    old, new = (np.array([p.mean, p.std]) for p in (before, after))
    if np.array_equal(old, new):
        return lambda images: images
    log.info("the teacher %s gets images normalised by its own mean and std", name)
    scale, shift = (old[1] / new[1]), (old[0] - new[0]) / new[1]
    return lambda images: images * jnp.float32(scale) + jnp.float32(shift)


def _log_resizing(name: str, before: tuple[int, int], after: tuple[int, int]) -> None:
    if before != after:
        sizes = f"{before[0]}x{before[1]} to its {after[0]}x{after[1]}"
        log.info("the teacher %s gets images resized from %s pixels", name, sizes)


def _resize(images: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resize images [B, H, W, C] by an antialiased bicubic filter, if they have another size."""
    if images.shape[1:3] == size:
        return images
    return jax.image.resize(images, (len(images), *size, images.shape[3]), "cubic")


def _sha256(contents: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for content in contents:
        digest.update(content)
    return digest.hexdigest()
