"""Adapting the embedding of patches to another number of channels."""

import math

import numpy as np


def adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Return a kernel for images of another number of channels, as timm's models do it.

    One channel, grey, gives the response to an image whose channels are all equal to it: the sum
    over the channels. More channels take the kernels of the channels in turn, scaled so that the
    response to an image of equal channels stays the same on average.

    Args:
        kernel: [C, channels before, patch, patch].
        channels: number of channels of the new images.

    Returns:
        [C, channels, patch, patch].
    """
    before = kernel.shape[1]
    if channels == 1:
        return kernel.sum(axis=1, keepdims=True)
    repeated = np.tile(kernel, (1, math.ceil(channels / before), 1, 1))[:, :channels]
    return repeated * np.float32(before / channels)
