"""Resize and centre crop on the device, for exported programs that include preprocessing."""

import math

import jax
import jax.numpy as jnp


def resize_and_centre_crop(
    images: jax.Array, size: tuple[int, int], crop_fraction: float
) -> jax.Array:
    """Compute `resizing.resize_and_centre_crop`, within one grey level, for images of one size.

    Height and width of the images may be symbolic dimensions.

    Args:
        images: uint8 [B, H, W, C].
        size: (height, width) of the result.
        crop_fraction: the crop's side as a share of the scaled image's.

    Returns:
        float32 [B, height, width, C], integers from 0 to 255.
    """
    input_size = jnp.stack([jnp.asarray(side, jnp.float32) for side in images.shape[1:3]])
    output_size = jnp.array(size, jnp.float32)
    min_size = jnp.array([math.floor(side / crop_fraction) for side in size], jnp.float32)
    # The side that determines the scale becomes exactly `min_size`; the other is rounded down. The
    # 1e-3 is more than the rounding error of a quotient, and much less than a pixel.
    scale = jnp.max(min_size / input_size)
    scaled_size = jnp.maximum(jnp.floor(input_size * scale + 1e-3), min_size)
    corner = jnp.round((scaled_size - output_size) / 2)
    resized = jax.image.scale_and_translate(
        images.astype(jnp.float32),
        (images.shape[0], *size, images.shape[3]),
        spatial_dims=(1, 2),
        scale=scaled_size / input_size,
        translation=-corner,
        method="cubic",
    )
    return jnp.clip(jnp.round(resized), 0, 255)
