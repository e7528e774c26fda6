"""How well a model tells classes apart, on all of some examples."""

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
from convit_jax.distributed.broken_images import BrokenTogether, checked
from convit_jax.errors import InputError, boundary, fitting_memory
from convit_jax.evaluation.step import make_eval_step
from convit_jax.evaluation.sums import means, sum_over_examples
from convit_jax.kernels import attention_for
from convit_jax.models import VisionTransformer
from convit_jax.system.paths import user_path

# Images of a step for each device, where nobody says.
IMAGES_A_DEVICE = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Accuracy:
    """What was measured.

    Attributes:
        examples: how many, each counted once.
        top1, top5: share of the examples whose label is the first, or among the first five.
        loss: mean cross-entropy, natural logarithm.
        confusion: [classes, classes], how many examples of a class (row) were taken for another
            (column), if that was asked for.
    """

    examples: int
    top1: float
    top5: float
    loss: float
    confusion: np.ndarray | None

    def per_class(self, class_names: tuple[str, ...]) -> list[dict[str, Any]]:
        """A record for each class that has examples, the worst first; needs `confusion`.

        Each has `class`, `name` (for people), `examples`, `accuracy` and `mistaken_for`, the class
        that it is most often taken for by mistake, or None.
        """
        names = imagenet.readable_names(class_names)
        rows = []
        for label in np.flatnonzero(self.confusion.sum(axis=1)):
            counts = self.confusion[label]
            mistakes = np.delete(counts, label)
            often = int(np.argmax(mistakes))
            rows.append(
                {
                    "class": class_names[label],
                    "name": names[label],
                    "examples": int(counts.sum()),
                    "accuracy": float(counts[label] / counts.sum()),
                    "mistaken_for": names[often + (often >= label)] if mistakes[often] else None,
                }
            )
        return sorted(rows, key=lambda row: row["accuracy"])

    def write_confusion(self, path: str, class_names: tuple[str, ...]) -> None:
        """Writes `confusion` as a .csv file, classes named in its first row and column.

        Raises:
            InputError: it cannot be written.
            MachineError: the machine is to blame for that.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["", *class_names])
        for name, row in zip(class_names, self.confusion, strict=True):
            writer.writerow([name, *row.astype(int)])
        with boundary(path, "cannot be written", chosen=True):
            # Classes are directories' names, which may be no UTF-8.
            user_path(path).write_bytes(text.getvalue().encode(errors="surrogateescape"))


def measure_accuracy(
    model: VisionTransformer,
    source: data.Source,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    reading: data.LoaderOptions,
    class_subset: Sequence[int] | None = None,
    confusion: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Accuracy:
    """Evaluates a model on every example exactly once, on all devices of all processes.

    Args:
        model: to be evaluated.
        source: the examples, with the model's labels.
        preprocessing: of images.
        batch_size: images a step, over all devices.
        reading: how the reading is spread over this machine.
        class_subset: the classes that are told apart, or None for all that the model knows.
        confusion: also count which classes are taken for which.
        progress: told how many batches of how many are done.

    Raises:
        InputError: the batch does not divide among the devices, or images of several labels
            cannot make a table of confusion.
        RunError: more images are broken than `reading` allows.
    """
    if confusion and source.label_shape:
        raise InputError(
            f"{source.name} has several labels an image: there are no classes to tell apart"
        )
    mesh = meshes.create_mesh()
    meshes.check_divides(mesh, batch_size, "--batch-size")
    # A step has no more rows than there are examples, but for those that fill up the devices'.
    batch_size = min(batch_size, -(-len(source) // mesh.size) * mesh.size)
    everywhere, rows = meshes.replicated(mesh), meshes.batch_sharding(mesh)
    graph, params = nnx.split(model.with_attention(attention_for(mesh)), nnx.Param)
    how = (preprocessing.mean, preprocessing.std, class_subset and tuple(class_subset), confusion)
    broken = BrokenTogether(source, reading.max_broken)
    batches = data.eval_batches(
        source,
        batch_size,
        data.EvalTransform(
            preprocessing.image_size, len(preprocessing.mean), preprocessing.crop_fraction
        ),
        rows=meshes.local_rows(rows, batch_size),
        options=reading,
        broken_counter=broken.health,
    )
    total = data.num_eval_batches(len(source), batch_size)
    height, width = preprocessing.image_size
    with fitting_memory(f"--batch-size={batch_size}, images of {height}x{width} pixels"):
        totals = sum_over_examples(
            _compiled_step(graph, *how, mesh),
            jax.device_put(nnx.to_pure_dict(params), everywhere),
            (meshes.to_global(batch, rows, batch_size) for batch in checked(batches, broken)),
            lambda done: progress(done, total),
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
    )


@functools.lru_cache(maxsize=8)
def _compiled_step(
    graph: nnx.GraphDef,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    class_subset: tuple[int, ...] | None,
    confusion: bool,
    mesh: Mesh,
) -> Callable[..., Any]:
    """One program for all models of one structure: a model under several masks compiles once."""
    everywhere, rows = meshes.replicated(mesh), meshes.batch_sharding(mesh)
    step = make_eval_step(graph, mean, std, class_subset=class_subset, confusion=confusion)
    return jax.jit(step, in_shardings=(everywhere, rows), out_shardings=everywhere)
