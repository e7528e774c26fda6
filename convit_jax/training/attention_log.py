"""Attention metrics logged at every evaluation: gates and non-locality of each layer."""

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
    placement: Placement,
    eval_examples: data.Source,
    reading: data.LoaderOptions,
) -> Callable[[Any], dict[str, float]]:
    """Return the function params → scalars of paper Fig. 5 and 6, for parameters on the mesh.

    `config.attention_images` images, evenly spaced over the evaluation data, are read at the first
    call and stay on the devices: 154 MB for 1,024 images of 224 pixels, over all devices. Each call
    then costs one forward pass over them, and keeps the attention maps of one layer at a time.
    """
    config, architecture = experiment.config, experiment.architecture
    examples = data.evenly_spaced_subset(eval_examples, config.attention_images)
    # The evaluation checks the share of broken images; in a sample this small it means little.
    reading = dataclasses.replace(reading, max_broken=1.0)
    num_devices = placement.mesh.size
    images_per_device = min(locality.images_at_once(architecture), -(-len(examples) // num_devices))
    batch_size = num_devices * images_per_device

    def read() -> Iterator[dict[str, jax.Array]]:
        rows = meshes.local_rows(placement.rows, batch_size)
        transform = experiment.eval_transform
        for batch in data.eval_batches(examples, batch_size, transform, rows=rows, options=reading):
            inputs = {name: batch[name] for name in ("image", "mask")}
            yield meshes.to_global(inputs, placement.rows, batch_size)

    def build_model(params: Any) -> Any:
        return nnx.merge(experiment.graph, nnx.State(params))

    def sum_locality(params: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        images = normalise(batch["image"], config.data.mean, config.data.std)
        return locality.sum_locality(build_model(params), images, batch["mask"])

    params_sharding = placement.state.eval_params
    everywhere = meshes.replicated(placement.mesh)
    step = jax.jit(
        sum_locality, in_shardings=(params_sharding, placement.rows), out_shardings=everywhere
    )
    gates = jax.jit(
        lambda params: locality.gates(build_model(params)),
        in_shardings=(params_sharding,),
        out_shardings=everywhere,
    )
    batches: list[dict[str, jax.Array]] = []

    def measure(params: Any) -> dict[str, float]:
        if not batches:
            batches.extend(read())
        sums = sum_over_examples(step, params, batches)
        nonlocality = locality.Locality.from_sums(sums).nonlocality
        return as_scalars(np.asarray(gates(params)), nonlocality)

    return measure
