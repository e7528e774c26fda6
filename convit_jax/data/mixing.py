"""What happens to a batch on the device, inside the training step."""

import jax
import jax.numpy as jnp


def normalise(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """Images as the model takes them.

    Args:
        images: uint8 [B, H, W, channels].
        mean, std: for each channel, in units of full scale.

    Returns:
        float32 [B, H, W, channels]: (images / 255 - mean) / std.
    """
    return (images.astype(jnp.float32) / 255.0 - jnp.array(mean)) / jnp.array(std)


def soft_labels(labels: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
    """Int [B] → float32 [B, num_classes]: `smoothing` spread evenly, the rest on the label."""
    return jax.nn.one_hot(labels, num_classes) * (1.0 - smoothing) + smoothing / num_classes
