"""Speed of a model: its forward pass and its whole train step."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from convit_jax import models
from convit_jax.benchmarks.timing import fastest, timed
from convit_jax.config import resolve
from convit_jax.data.sources import imagenet
from convit_jax.distributed import mesh as meshes
from convit_jax.system.paths import output_directory
from convit_jax.training import make_experiment

_PROFILED_STEPS = 5


@dataclasses.dataclass(frozen=True)
class ModelSpeed:
    """What `benchmark model` measures of a model.

    Attributes:
        model: its name.
        gpsa_layers: how many it has.
        parameters: how many.
        gflops: of a forward pass of one image, in 10⁹ operations (a multiply-add is two).
        forward_compile_seconds, train_compile_seconds: time to compile.
        forward_images_per_second, train_images_per_second: at the fastest repetition.
        timm: timm's images a second, {"eager forward": …, "eager train": …} and "compiled …"
            where they were measured too.
    """

    model: str
    gpsa_layers: int
    parameters: int
    gflops: float
    forward_compile_seconds: float
    forward_images_per_second: float
    train_compile_seconds: float
    train_images_per_second: float
    timm: Mapping[str, float] = dataclasses.field(default_factory=dict)


def measure_model(
    name: str,
    *,
    batch_size: int,
    image_size: int,
    dtype: str,
    seconds: float,
    profile: str | None = None,
    gpsa_layers: int | None = None,
) -> ModelSpeed:
    """Times a model's forward pass and its whole train step with the default recipe.

    Args:
        name: one of `list_models()`.
        batch_size: images a step.
        image_size: side in pixels.
        dtype: float32 or bfloat16.
        seconds: how long to repeat each of the two; at least three repetitions.
        profile: a directory; a profile of five more train steps is written to one of the model's
            name in it, for TensorBoard.
        gpsa_layers: how many, in place of the model's own number.

    Raises:
        InputError: an unknown model, a size that does not fit it, or a directory that cannot be
            written to.
    """
    if profile is not None:
        profile = str(output_directory(profile, "--profile") / name)
    config = resolve(
        {
            "batch_size": batch_size,
            "model": {
                "name": name,
                "dtype": dtype,
                "drop_path_rate": 0.1,
                "gpsa_layers": gpsa_layers,
            },
            "data": {"image_size": (image_size,)},
        }
    )
    one = meshes.create_mesh(1, jax.devices()[:1])
    experiment = make_experiment(
        config, num_examples=imagenet.NUM_TRAIN_IMAGES, num_classes=imagenet.NUM_CLASSES, mesh=one
    )
    state = jax.jit(experiment.init_state)()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (batch_size, image_size, image_size, 3), np.uint8)
    batch = jax.device_put(
        {
            "image": pixels,
            "label": rng.integers(0, imagenet.NUM_CLASSES, batch_size).astype(np.int32),
        }
    )
    images = jax.device_put(pixels.astype(np.float32) / 255 - 0.5)

    def classify(params: Any, x: jax.Array) -> jax.Array:
        return nnx.merge(experiment.graph, nnx.State(params))(x)

    forward = jax.jit(classify)
    compiled, forward_compile = timed(forward.lower(state.params, images).compile)
    forward_seconds = fastest(lambda: compiled(state.params, images), seconds)

    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    step = jax.jit(experiment.train_step, donate_argnums=0).lower(state, batch)
    train_step, train_compile = timed(step.compile)

    def take_step() -> Any:
        nonlocal state
        state, metrics = train_step(state, batch)
        return metrics

    train_seconds = fastest(take_step, seconds)
    if profile is not None:
        with jax.profiler.trace(profile):
            for _ in range(_PROFILED_STEPS):
                jax.block_until_ready(take_step())
    return ModelSpeed(
        model=name,
        gpsa_layers=experiment.architecture.gpsa_layers,
        parameters=parameters,
        gflops=models.forward_flops(experiment.architecture) / 1e9,
        forward_compile_seconds=forward_compile,
        forward_images_per_second=batch_size / forward_seconds,
        train_compile_seconds=train_compile,
        train_images_per_second=batch_size / train_seconds,
    )
