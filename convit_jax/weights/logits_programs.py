"""Programs of `jax.export` that take normalised images and return logits, of any library."""

import dataclasses
import logging
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from convit_jax.errors import InputError, boundary
from convit_jax.system.devices import platform_of
from convit_jax.system.paths import user_path

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class LogitsProgram:
    """An exported function of normalised images.

    Attributes:
        name: the file's name.
        exported: the program.
        content: the file it was read from.
        shape: (height, width, channels) of the images that it gets.
        num_classes: length of the logits.
    """

    name: str
    exported: export.Exported
    content: bytes
    shape: tuple[int, int, int]
    num_classes: int

    def logits(self, images: jax.Array) -> jax.Array:
        """Return the logits, float32 [B, num_classes], of images [B, height, width, channels]."""
        logits: Any = self.exported.call(images.astype(self.exported.in_avals[0].dtype))
        return jax.tree.leaves(logits)[0].astype(jnp.float32)

    def forward_flops(self) -> float:
        """Return the floating-point operations of one image, as the CPU's compiler counts them.

        They are 0, with a warning, if the program was not exported for CPUs too.
        """
        if "cpu" not in self.exported.platforms:
            log.warning("%s was not exported for cpu: its operations are not counted", self.name)
            return 0.0
        image = jax.ShapeDtypeStruct((1, *self.shape), jnp.float32)
        # Its shapes become known only when it is compiled.
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            costs = jax.jit(self.logits).lower(image).compile().cost_analysis()
        assert costs is not None  # the CPU backend has them
        return costs["flops"]


def open_program(
    name: str, shape: tuple[int, int, int], device: jax.Device | None = None
) -> LogitsProgram:
    """Read a program from a file and check that it can classify batches of any size.

    Args:
        name: the file, a serialised artefact of `jax.export`.
        shape: (height, width, channels) of the images, where the program accepts several.
        device: one of those it will run on.

    Raises:
        InputError: there is no such file, it is not such a program, or not for this device.
        MachineError: the machine cannot read it.
    """
    path = user_path(name)
    with boundary(name):
        if not path.is_file():
            raise InputError(f"no program at {name}: expected a file that jax.export wrote")
        content = path.read_bytes()
        exported = export.deserialize(bytearray(content))
    expected = "expected one from normalised images, float32 [batch, height, width, channels], to "
    expected += "logits [batch, classes], such as convert … --logits writes"
    inputs, outputs = exported.in_avals, exported.out_avals
    if [len(aval.shape) for aval in inputs] != [4] or [len(x.shape) for x in outputs] != [2]:
        takes, gives = (", ".join(map(str, avals)) for avals in (inputs, outputs))
        raise InputError(f"{name} takes {takes} and gives {gives}: {expected}")
    if not all(jnp.issubdtype(aval.dtype, jnp.floating) for aval in (*inputs, *outputs)):
        takes, gives = inputs[0].dtype, outputs[0].dtype
        raise InputError(f"{name} takes {takes} and gives {gives}: {expected}")
    batch, num_classes = inputs[0].shape[0], outputs[0].shape[1]
    if not export.is_symbolic_dim(batch) or export.is_symbolic_dim(num_classes):
        raise InputError(
            f"{name} takes {inputs[0].str_short()} and gives {outputs[0].str_short()}: expected a "
            "program for batches of any size, exported with jax.export.symbolic_shape('batch'), "
            "and a fixed number of classes"
        )
    if exported.nr_devices != 1:
        raise InputError(
            f"{name} was exported for {exported.nr_devices} devices: expected one, for which the "
            "batch is divided"
        )
    if device is not None and platform_of(device) not in exported.platforms:
        raise InputError(
            f"{name} was exported for {', '.join(exported.platforms)}: expected a program for "
            f"{platform_of(device)}, the platform of the devices"
        )
    height, width, channels = (
        default if export.is_symbolic_dim(size) else size
        for size, default in zip(inputs[0].shape[1:], shape, strict=True)
    )
    program = LogitsProgram(name, exported, content, (height, width, channels), num_classes)
    with boundary(name, f"does not take images of {height}x{width} pixels"):
        image = jax.ShapeDtypeStruct((2, height, width, channels), jnp.float32)
        jax.eval_shape(program.logits, image)
    return program
