"""The accuracy of a model on a dataset."""

import csv
import dataclasses
import functools
import io
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from convit_jax import data
from convit_jax.data.images.preprocessing import Preprocessing
from convit_jax.data.sources import imagenet
from convit_jax.distributed import mesh as meshes
from convit_jax.distributed.broken_images import BrokenImageExchange, check_at_end
from convit_jax.errors import InputError, boundary, fitting_memory
from convit_jax.evaluation.step import Predict, make_eval_step
from convit_jax.evaluation.sums import means, sum_over_examples
from convit_jax.kernels import attention_for
from convit_jax.models import VisionTransformer
from convit_jax.system.paths import user_path

# Default number of images per step and device.
IMAGES_PER_DEVICE = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Accuracy:
    """The result of an evaluation.

    Attributes:
        examples: number of examples, each counted once.
        top1, top5: share of the examples whose label is the top class, or among the top five.
        loss: mean cross-entropy, natural logarithm.
        confusion: [classes, classes], number of examples of a class (row) predicted as another
            (column), if requested.
        agreement: share of the examples whose top class is the teacher's; None without one.
    """

    examples: int
    top1: float
    top5: float
    loss: float
    confusion: np.ndarray | None
    agreement: float | None = None

    def per_class(self, class_names: tuple[str, ...]) -> list[dict[str, Any]]:
        """Return a record of each class that has examples, the worst first; needs `confusion`.

        Each has `class`, `name` (readable), `examples`, `accuracy` and `mistaken_for`, the wrong
        class most often predicted for it, or None.
        """
        assert self.confusion is not None
        names = imagenet.readable_names(class_names)
        rows: list[dict[str, Any]] = []
        for label in np.flatnonzero(self.confusion.sum(axis=1)):
            counts = self.confusion[label]
            mistakes = np.delete(counts, label)
            worst = int(np.argmax(mistakes))
            rows.append(
                {
                    "class": class_names[label],
                    "name": names[label],
                    "examples": int(counts.sum()),
                    "accuracy": float(counts[label] / counts.sum()),
                    "mistaken_for": names[worst + (worst >= label)] if mistakes[worst] else None,
                }
            )
        return sorted(rows, key=lambda row: row["accuracy"])

    def write_confusion(self, path: str, class_names: tuple[str, ...]) -> None:
        """Write `confusion` as a .csv file, with the classes in its first row and column.

        Raises:
            InputError: it cannot be written.
            MachineError: a fault of the machine prevents writing it.
        """
        assert self.confusion is not None
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["", *class_names])
        for name, row in zip(class_names, self.confusion, strict=True):
            writer.writerow([name, *row.astype(int)])
        with boundary(path, "cannot be written", chosen=True):
            # Classes are directory names, which may not be valid UTF-8.
            user_path(path).write_bytes(text.getvalue().encode(errors="surrogateescape"))


def measure_accuracy(
    model: VisionTransformer,
    source: data.Source,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    options: data.LoaderOptions,
    class_subset: Sequence[int] | None = None,
    confusion: bool = False,
    teacher: tuple[Predict, Any] | None = None,
    progress: Callable[[int, int], None] = lambda num_batches, total: None,
) -> Accuracy:
    """Evaluate a model on every example exactly once, on all devices of all processes.

    Args:
        model: the model to evaluate.
        source: the examples, with the model's labels.
        preprocessing: the preprocessing of the images.
        batch_size: images per step, over all devices.
        options: how this machine reads the images.
        class_subset: the classes to choose from, or None for all that the model knows.
        confusion: also count which classes are predicted for which.
        teacher: a function of (its parameters, the model's images) to logits, and these parameters:
            also measure the agreement with it.
        progress: called with the numbers of batches done and of all batches.

    Raises:
        InputError: the batch does not divide among the devices, or a confusion table was requested
            for images with several labels.
        RunError: more images are broken than `options` allow.
    """
    if confusion and source.label_shape:
        raise InputError(
            f"{source.name} has several labels per image: expected one for a table of confusion"
        )
    mesh = meshes.create_mesh()
    batch_size = meshes.evaluation_batch_size(mesh, batch_size, len(source))
    everywhere, rows = meshes.replicated(mesh), meshes.batch_sharding(mesh)
    graph, params = nnx.split(model.with_attention(attention_for(mesh)), nnx.Param)
    broken_images = BrokenImageExchange(source, options.max_broken)
    p = preprocessing
    batches = data.eval_batches(
        source,
        batch_size,
        data.EvalTransform(p.image_size, len(p.mean), p.crop_fraction),
        rows=meshes.local_rows(rows, batch_size),
        options=options,
        broken_counter=broken_images.counter,
    )
    total = data.num_eval_batches(len(source), batch_size)
    height, width = p.image_size
    subset = None if class_subset is None else tuple(class_subset)
    predict, teacher_params = teacher or (None, None)
    step = _compiled_step(graph, p.mean, p.std, subset, confusion, predict, mesh)
    with fitting_memory(f"--batch-size={batch_size}, images of {height}x{width} pixels"):
        of_teacher = jax.device_put(teacher_params, everywhere)
        totals = sum_over_examples(
            lambda params, batch: step(params, batch, of_teacher),
            jax.device_put(nnx.to_pure_dict(params), everywhere),
            (
                meshes.to_global(batch, rows, batch_size)
                for batch in check_at_end(batches, broken_images)
            ),
            lambda num_batches: progress(num_batches, total),
        )
    if not totals["examples"]:
        raise InputError(f"no example of {source.name} could be read and has a label")
    mean = means(totals)
    return Accuracy(
        examples=int(mean["examples"]),
        top1=mean["accuracy"],
        top5=mean["accuracy_top5"],
        loss=mean["loss"],
        confusion=totals.get("confusion"),
        agreement=mean.get("agreement"),
    )


@functools.lru_cache(maxsize=8)
def _compiled_step(
    graph: nnx.GraphDef,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    class_subset: tuple[int, ...] | None,
    confusion: bool,
    teacher: Predict | None,
    mesh: Mesh,
) -> Callable[..., Any]:
    """Return the jitted step, compiled once for all models of the same structure."""
    everywhere, rows = meshes.replicated(mesh), meshes.batch_sharding(mesh)
    step = make_eval_step(
        graph, mean, std, class_subset=class_subset, confusion=confusion, teacher=teacher
    )
    return jax.jit(step, in_shardings=(everywhere, rows, everywhere), out_shardings=everywhere)
