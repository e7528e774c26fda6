"""What a whole train step costs on a TPU with the attention in one form or another.

Costs are static: the TPU compiler's estimates for its own instructions and the bundles of the
kernels' schedules, without waits for memory in the latter. Nothing has to run for them.
"""

import dataclasses
from collections.abc import Iterator, Sequence

from convit_jax.benchmarks.attention import FORMS
from convit_jax.benchmarks.timing import timed
from convit_jax.config import resolve
from convit_jax.data.sources import imagenet
from convit_jax.planning import find_topology, make_plan, schedules

# What the paper's recipe does on the device; the host's part of it costs a chip nothing.
_RECIPE = {"erase": 0.25, "mixup": 0.8, "cutmix": 1.0}


@dataclasses.dataclass(frozen=True)
class StepCost:
    """What `benchmark kernel` says of a form.

    Attributes:
        form: key of `FORMS`.
        cycles: of a train step on a chip, static.
        kernel_cycles: of them in the fused kernels.
        forward_cycles, backward_cycles: of one call of the longest kernels.
        compile_seconds: for tracing and compiling the step.
    """

    form: str
    cycles: int
    kernel_cycles: int
    forward_cycles: int
    backward_cycles: int
    compile_seconds: float


def measure_kernel(
    model: str, forms: Sequence[str], *, topology: str, images: int, image_size: int
) -> Iterator[StepCost]:
    """Compiles the train step of a model in bfloat16 with its attention in each form.

    Args:
        model: one of `list_models()`, a ConViT.
        forms: keys of `FORMS`.
        topology: the slice to compile for.
        images: a chip and step.
        image_size: side in pixels.
    """
    slice_ = find_topology(topology)
    batch = images * slice_.chips
    for form in forms:
        attention, gated = FORMS[form]
        changes = {} if gated else {"gpsa_layers": 0}
        config = resolve(
            {
                "batch_size": batch,
                "eval_batch_size": batch,
                "model": {"name": model, "dtype": "bfloat16", "drop_path_rate": 0.1} | changes,
                "data": {"image_size": (image_size,)},
                "augment": _RECIPE,
            }
        )
        plan, taken = timed(
            lambda config=config, attention=attention: make_plan(
                config,
                slice_,
                num_examples=imagenet.NUM_TRAIN_IMAGES,
                num_classes=imagenet.NUM_CLASSES,
                attention=attention,
            )
        )
        found = schedules.recorded()
        alone = [
            max((n for name, n in found.items() if part in name), default=0)
            for part in ("attention_forward", "attention_backward")
        ]
        yield StepCost(form, plan.cycles, plan.custom_cycles, *alone, taken)
