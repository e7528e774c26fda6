"""Speed of a model's forward pass and train step."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convit_jax import models
from convit_jax.benchmarks.imagenet import imagenet_config
from convit_jax.benchmarks.timing import best_time, time_call
from convit_jax.data.sources import imagenet
from convit_jax.distributed import mesh as meshes
from convit_jax.system.paths import output_directory
from convit_jax.training import make_experiment

_PROFILED_STEPS = 5
# Side of the matrices whose product is the speed to compare with: large enough to be limited by
# arithmetic alone, small enough for a CPU.
_MATRIX_SIZE = {"cpu": 2048, "gpu": 8192, "tpu": 8192}


@dataclasses.dataclass(frozen=True)
class ModelSpeed:
    """Speed of a model, as reported by `benchmark model`.

    Attributes:
        model: its name.
        gpsa_layers: number of GPSA layers.
        parameters: number of parameters.
        gflops: 10⁹ operations of one image's forward pass (a multiply-add is two).
        forward_compile_seconds, train_compile_seconds: time to compile.
        forward_images_per_second, train_images_per_second: of the fastest repetition.
        product_gflops: 10⁹ operations per second of one large matrix product, the device's speed
            when nothing else has to be done.
        timm: timm's images per second, {"eager forward": …, "eager train": …}, "compiled …" and
            "ONNX forward", as far as they were measured.
    """

    model: str
    gpsa_layers: int
    parameters: int
    gflops: float
    forward_compile_seconds: float
    forward_images_per_second: float
    train_compile_seconds: float
    train_images_per_second: float
    product_gflops: float
    timm: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def forward_share(self) -> float:
        """The forward pass's operations per second over those of a large matrix product."""
        return self.gflops * self.forward_images_per_second / self.product_gflops

    @property
    def train_share(self) -> float:
        """The same of a train step, which counts as three forward passes."""
        return 3 * self.gflops * self.train_images_per_second / self.product_gflops


def measure_product(dtype: str, seconds: float) -> float:
    """Return the floating-point operations per second of one large matrix product.

    Args:
        dtype: of the matrices.
        seconds: how long to repeat it; at least three repetitions.
    """
    size = _MATRIX_SIZE[jax.default_backend()]
    keys = jax.random.split(jax.random.key(0))
    left, right = (jax.random.normal(key, (size, size), jnp.dtype(dtype)) for key in keys)
    product = jax.jit(jnp.matmul)
    return 2 * size**3 / best_time(lambda: product(left, right), seconds)


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
    """Time a model's forward pass and its whole train step with the default recipe.

    Args:
        name: one of `list_models()`.
        batch_size: images per step.
        image_size: side in pixels.
        dtype: float32 or bfloat16.
        seconds: how long to repeat each of the two; at least three repetitions.
        profile: directory; a profile of five more train steps is written to its subdirectory
            `name`, for TensorBoard.
        gpsa_layers: overrides the model's number of GPSA layers.

    Raises:
        InputError: an unknown model, a size that does not fit it, or a directory that cannot be
            written to.
    """
    if profile is not None:
        profile = str(output_directory(profile, "--profile") / name)
    config = imagenet_config(
        name, batch_size=batch_size, image_size=image_size, dtype=dtype, gpsa_layers=gpsa_layers
    )
    experiment = make_experiment(
        config,
        num_examples=imagenet.NUM_TRAIN_IMAGES,
        num_classes=imagenet.NUM_CLASSES,
        mesh=meshes.create_mesh(1, jax.devices()[:1]),
    )
    state = jax.jit(experiment.init_state)()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (batch_size, image_size, image_size, 3), np.uint8)
    labels = rng.integers(0, imagenet.NUM_CLASSES, batch_size).astype(np.int32)
    batch = jax.device_put({"image": pixels, "label": labels})
    images = jax.device_put(pixels.astype(np.float32) / 255 - 0.5)

    def classify(params: Any, x: jax.Array) -> jax.Array:
        return nnx.merge(experiment.graph, nnx.State(params))(x)

    forward, forward_compile = time_call(jax.jit(classify).lower(state.params, images).compile)
    forward_seconds = best_time(lambda: forward(state.params, images), seconds)

    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    step = jax.jit(experiment.train_step, donate_argnums=0).lower(state, batch)
    train_step, train_compile = time_call(step.compile)

    def take_step() -> Any:
        nonlocal state
        state, metrics = train_step(state, batch)
        return metrics

    train_seconds = best_time(take_step, seconds)
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
        product_gflops=measure_product(dtype, seconds / 4) / 1e9,
    )
