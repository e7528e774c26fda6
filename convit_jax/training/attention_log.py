"""What a run tells of its attention at every evaluation: gates and non-locality, by layer."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx

from convit_jax import data
from convit_jax.analysis import locality
from convit_jax.analysis.history import as_scalars
from convit_jax.data.mixing import normalise
from convit_jax.distributed import mesh as meshes
from convit_jax.evaluation.sums import sum_over_examples
from convit_jax.training.experiment import Experiment
from convit_jax.training.placement import Placement


def make_attention_log(
    experiment: Experiment,
    placed: Placement,
    eval_examples: data.Source,
    reading: data.LoaderOptions,
) -> Callable[[Any], dict[str, float]]:
    """The function params → scalars (paper Fig. 5 and 6) of a run; its parameters as placed.

    The images, `config.attention_images` of the evaluation's spread evenly over them, are read at
    the first call and stay on the devices: 154 MB for 1,024 of 224 pixels, over all of them. A call
    then costs one forward pass of each, and only the attention maps of one layer are held at once.
    """
    config, a = experiment.config, experiment.architecture
    some = data.evenly_spaced_subset(eval_examples, config.attention_images)
    # Evaluations count the broken ones: a few images' share of them would say little.
    reading = dataclasses.replace(reading, max_broken=1.0)
    devices = placed.mesh.size
    size = devices * min(locality.images_at_once(a), -(-len(some) // devices))

    def read() -> Iterator[dict[str, jax.Array]]:
        rows = meshes.local_rows(placed.rows, size)
        transform = experiment.eval_transform
        for batch in data.eval_batches(some, size, transform, rows=rows, options=reading):
            needed = {name: batch[name] for name in ("image", "mask")}
            yield meshes.to_global(needed, placed.rows, size)

    def model_of(params: Any) -> Any:
        return nnx.merge(experiment.graph, nnx.State(params))

    def sums_of(params: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        images = normalise(batch["image"], config.data.mean, config.data.std)
        return locality.sum_locality(model_of(params), images, batch["mask"])

    params_lie, everywhere = placed.state.eval_params, meshes.replicated(placed.mesh)
    step = jax.jit(sums_of, in_shardings=(params_lie, placed.rows), out_shardings=everywhere)
    gates = jax.jit(
        lambda params: locality.gates(model_of(params)),
        in_shardings=(params_lie,),
        out_shardings=everywhere,
    )
    batches: list[dict[str, jax.Array]] = []

    def measure(params: Any) -> dict[str, float]:
        if not batches:
            batches.extend(read())
        found = locality.Locality.from_sums(sum_over_examples(step, params, batches))
        return as_scalars(np.asarray(gates(params)), found.nonlocality)

    return measure
