"""The configuration that benchmarks measure: a model with the default recipe on ImageNet."""

from collections.abc import Mapping

from convit_jax.config import Config, resolve


def imagenet_config(
    model: str,
    *,
    batch_size: int,
    image_size: int,
    dtype: str,
    gpsa_layers: int | None = None,
    augment: Mapping[str, float] | None = None,
) -> Config:
    """Return the configuration of a training run of a model.

    Args:
        model: one of `list_models()`.
        batch_size: images per step, over all devices.
        image_size: side in pixels.
        dtype: float32 or bfloat16.
        gpsa_layers: overrides the model's number of GPSA layers.
        augment: keys of the config's section `augment`.

    Raises:
        InputError: an unknown model, or a value that is out of range or does not fit the model.
    """
    return resolve(
        {
            "batch_size": batch_size,
            "eval_batch_size": batch_size,
            "model": {
                "name": model,
                "dtype": dtype,
                "drop_path_rate": 0.1,
                "gpsa_layers": gpsa_layers,
            },
            "data": {"image_size": (image_size,)},
            "augment": augment or {},
        }
    )
