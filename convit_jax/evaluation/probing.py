"""What a model's features are worth without its head: nearest neighbours and a linear probe."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

from convit_jax import data
from convit_jax.data.images.preprocessing import Preprocessing
from convit_jax.data.mixing import normalise
from convit_jax.distributed import mesh as meshes
from convit_jax.errors import InputError, RunError, fitting_memory
from convit_jax.kernels import attention_for
from convit_jax.models import VisionTransformer

# The usual number of neighbours for features of ImageNet (Caron et al. 2021).
NUM_NEIGHBOURS = 20
_MAX_PROBE_STEPS = 1000


@dataclasses.dataclass(frozen=True)
class ProbeAccuracy:
    """The accuracy of classifiers on a model's features.

    Attributes:
        train_examples, examples: number of examples to learn from, and to classify.
        neighbours: number of nearest neighbours.
        knn_top1: share of the examples that their nearest neighbours classify right, by cosine
            similarity, nearer ones with more weight.
        linear_top1: the same for logistic regression on standardised features.
    """

    train_examples: int
    examples: int
    neighbours: int
    knn_top1: float
    linear_top1: float


def embed_examples(
    model: VisionTransformer,
    source: data.Source,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    options: data.LoaderOptions,
    progress: Callable[[int, int], None] = lambda num_batches, total: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the features of all examples that can be read, and their labels.

    Args:
        model: any vision transformer.
        source: the examples.
        preprocessing: the preprocessing of the images.
        batch_size: images per step, over all devices of this process.
        options: how this machine reads the images.
        progress: called with the numbers of batches done and of all batches.

    Returns:
        float32 [n, C], and int [n].

    Raises:
        InputError: the examples have several labels, the batch does not divide among the devices,
            or there are several processes.
        RunError: more images are broken than `options` allow.
    """
    if source.label_shape:
        raise InputError(f"{source.name} has several labels per image: expected one")
    if jax.process_count() > 1:
        raise InputError("--knn runs in one process: expected a machine of its own")
    mesh, p = meshes.create_mesh(), preprocessing
    batch_size = meshes.evaluation_batch_size(mesh, batch_size, len(source))
    graph, state = nnx.split(model.with_attention(attention_for(mesh)))
    everywhere, rows = meshes.replicated(mesh), meshes.batch_sharding(mesh)
    run = jax.jit(
        lambda state, pixels: nnx.merge(graph, state).features(normalise(pixels, p.mean, p.std)),
        in_shardings=(everywhere, rows),
        out_shardings=everywhere,
    )
    transform = data.EvalTransform(p.image_size, len(p.mean), p.crop_fraction)
    batches = data.eval_batches(source, batch_size, transform, options=options)
    total = data.num_eval_batches(len(source), batch_size)
    features, labels = [], []
    height, width = p.image_size
    with fitting_memory(f"--batch-size={batch_size}, images of {height}x{width} pixels"):
        for done, batch in enumerate(batches, 1):
            # Labels below 0 are those of images without one.
            counted = (batch["mask"] > 0) & (batch["label"] >= 0)
            features.append(np.asarray(run(state, batch["image"]))[counted])
            labels.append(batch["label"][counted])
            progress(done, total)
    return np.concatenate(features), np.concatenate(labels)


def probe(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]
) -> ProbeAccuracy:
    """Learn classifiers from features and labels as of `embed_examples`, and test them.

    Raises:
        RunError: there are no examples, or they are all of one class.
    """
    # Imported here: it takes a second, which other evaluations need not wait for.
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415
    from sklearn.neighbors import KNeighborsClassifier  # noqa: PLC0415
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    if len(np.unique(train[1])) < 2 or not len(test[1]):
        raise RunError("expected training examples of at least two classes, and examples to test")
    neighbours = min(NUM_NEIGHBOURS, len(train[1]))
    knn = KNeighborsClassifier(neighbours, metric="cosine", weights="distance")
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_MAX_PROBE_STEPS))
    return ProbeAccuracy(
        train_examples=len(train[1]),
        examples=len(test[1]),
        neighbours=neighbours,
        knn_top1=float(knn.fit(*train).score(*test)),
        linear_top1=float(linear.fit(*train).score(*test)),
    )
