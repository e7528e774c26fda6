"""The evaluation's view of an image, computed on the device: for programs that carry it inside."""

import math

import jax
import jax.numpy as jnp


def resize_and_centre_crop(
    images: jax.Array, size: tuple[int, int], crop_fraction: float
) -> jax.Array:
    """As `resizing.resize_and_centre_crop`, within one grey level, for images of any one size.

    Height and width may be unknown when the program is compiled: the result's are not.

    Args:
        images: uint8 [B, H, W, C].
        size: (height, width) of the result.
        crop_fraction: share of the scaled image's side that is kept.

    Returns:
        float32 [B, height, width, C], whole numbers of 0 to 255.
    """
    old = jnp.stack([jnp.asarray(side, jnp.float32) for side in images.shape[1:3]])
    kept = jnp.array(size, jnp.float32)
    smallest = jnp.array([math.floor(side / crop_fraction) for side in size], jnp.float32)
    # The side that decides is met exactly; the other is cut to whole pixels. What is added is
    # above the rounding of a quotient, far below a pixel.
    scaled = jnp.maximum(jnp.floor(old * jnp.max(smallest / old) + 1e-3), smallest)
    corner = jnp.round((scaled - kept) / 2)
    resized = jax.image.scale_and_translate(
        images.astype(jnp.float32),
        (images.shape[0], *size, images.shape[3]),
        spatial_dims=(1, 2),
        scale=scaled / old,
        translation=-corner,
        method="cubic",
    )
    return jnp.clip(jnp.round(resized), 0, 255)
