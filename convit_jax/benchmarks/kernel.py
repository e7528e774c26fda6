"""Static cost of a whole train step on a TPU for each form of attention.

Costs are the TPU compiler's estimates for its own instructions, and the instruction bundles of the
kernels' schedules, without waiting for memory in the latter. Nothing is executed.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

from convit_jax.benchmarks.attention import FORMS
from convit_jax.benchmarks.imagenet import imagenet_config
from convit_jax.benchmarks.timing import time_call
from convit_jax.data.sources import imagenet
from convit_jax.planning import find_topology, make_plan, schedules

# The device's part of the paper's augmentation; the host's part adds nothing to the train step.
_AUGMENT = {"erase": 0.25, "mixup": 0.8, "cutmix": 1.0}


@dataclasses.dataclass(frozen=True)
class StepCost:
    """Cost of a train step with one form of attention, as reported by `benchmark kernel`.

    Attributes:
        form: key of `FORMS`.
        cycles: static cycles of a train step on a chip.
        kernel_cycles: the part of `cycles` in the fused kernels.
        forward_cycles, backward_cycles: cycles of one call of the longest kernel of each pass.
        compile_seconds: time to trace and compile the step.
    """

    form: str
    cycles: int
    kernel_cycles: int
    forward_cycles: int
    backward_cycles: int
    compile_seconds: float


def measure_kernel(
    model: str, forms: Sequence[str], *, topology: str, batch_size: int, image_size: int
) -> Iterator[StepCost]:
    """Compile a model's train step in bfloat16 with each form of attention.

    Args:
        model: one of `list_models()`, a ConViT.
        forms: keys of `FORMS`.
        topology: name of the slice to compile for.
        batch_size: images per chip and step.
        image_size: side in pixels.
    """
    target = find_topology(topology)
    for form in forms:
        attention, gated = FORMS[form]
        config = imagenet_config(
            model,
            batch_size=batch_size * target.chips,
            image_size=image_size,
            dtype="bfloat16",
            gpsa_layers=None if gated else 0,
            augment=_AUGMENT,
        )
        sizes = {"num_examples": imagenet.NUM_TRAIN_IMAGES, "num_classes": imagenet.NUM_CLASSES}
        plan, compile_seconds = time_call(
            functools.partial(make_plan, config, target, attention=attention, **sizes)
        )
        cycles = schedules.read_cycles()
        forward_cycles, backward_cycles = (
            max((n for name, n in cycles.items() if kernel in name), default=0)
            for kernel in ("attention_forward", "attention_backward")
        )
        yield StepCost(
            form=form,
            cycles=plan.cycles,
            kernel_cycles=plan.custom_cycles,
            forward_cycles=forward_cycles,
            backward_cycles=backward_cycles,
            compile_seconds=compile_seconds,
        )
