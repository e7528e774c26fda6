"""3-Augment (Touvron et al. 2022, DeiT III) and the colour jitter that follows it."""

import numpy as np

from convit_jax.data.images import image_operations as ops

# Values from here on are inverted, as in Pillow.
_SOLARIZE_THRESHOLD = 128
_LARGEST_BLUR = 2.0
_SMALLEST_BLUR = 0.1


def three_augment(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply greyscale, solarization or Gaussian blur, each with the same probability.

    The blur's standard deviation is uniform from 0.1 to 2 pixels.

    Args:
        image: uint8 [H, W, 3].
        rng: random generator of the view.
    """
    choice, sigma = rng.integers(3), rng.uniform(_SMALLEST_BLUR, _LARGEST_BLUR)
    if choice == 0:
        return ops.greyscale(image)
    if choice == 1:
        return ops.solarize(image, _SOLARIZE_THRESHOLD)
    return ops.gaussian_blur(image, sigma)


def colour_jitter(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast and saturation in random order, as torchvision does.

    Args:
        image: uint8 [H, W, 3].
        strength: each factor is uniform from 1 - strength to 1 + strength.
        rng: random generator of the view.
    """
    operations = (ops.brightness, ops.contrast, ops.colour)
    factors = rng.uniform(1.0 - strength, 1.0 + strength, size=3)
    for index in rng.permutation(3):
        image = operations[index](image, float(factors[index]))
    return image
