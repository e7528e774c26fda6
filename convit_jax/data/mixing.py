"""Batch augmentation on the device, inside the training step: pure functions of (batch, key).

Rows 2k and 2k + 1 of the batch are mixed with each other: both are on one device, so nothing is
communicated between devices, and the result is the same on any number of devices.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

# Boxes tried for an image before it is left unchanged.
_ERASE_ATTEMPTS = 10


@dataclasses.dataclass(frozen=True)
class Mixing:
    """Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019); one of them is drawn for each batch.

    Attributes:
        mixup, cutmix: α of the Beta(α, α) from which an image's own share is drawn; 0 turns the
            method off.
        prob: probability that a batch is mixed.
        switch_prob: probability of CutMix if both methods are on.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    prob: float = 1.0
    switch_prob: float = 0.5

    @property
    def enabled(self) -> bool:
        """Whether any batch is mixed."""
        return bool((self.mixup or self.cutmix) and self.prob)


@dataclasses.dataclass(frozen=True)
class Erasing:
    """Random erasing (Zhong et al. 2020), mode `pixel`: a box is filled with normal noise.

    Attributes:
        prob: probability for each image.
        area: range of the box's area as a share of the image's.
        ratio: range of the box's height over its width, log-uniform.
    """

    prob: float = 0.0
    area: tuple[float, ...] = (0.02, 1 / 3)
    ratio: tuple[float, ...] = (0.3, 1 / 0.3)


def normalise(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """Normalise images for the model.

    Args:
        images: uint8 [B, H, W, channels].
        mean, std: of each channel, in units of full scale.

    Returns:
        float32 [B, H, W, channels]: (images / 255 - mean) / std.
    """
    return (images.astype(jnp.float32) / 255.0 - jnp.array(mean)) / jnp.array(std)


def soft_labels(labels: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
    """Int [B] → float32 [B, num_classes]: `smoothing` spread evenly, the remainder on the label."""
    return jax.nn.one_hot(labels, num_classes) * (1.0 - smoothing) + smoothing / num_classes


def erase(images: jax.Array, erasing: Erasing, key: jax.Array) -> jax.Array:
    """Fill a random box of some images with noise; images are normalised, [B, H, W, channels]."""
    chosen_key, box_key, noise_key = jax.random.split(key, 3)
    batch_size, height, width, _ = images.shape
    chosen = jax.random.bernoulli(chosen_key, erasing.prob, (batch_size,))
    inside = _random_boxes(box_key, batch_size, height, width, erasing)
    noise = jax.random.normal(noise_key, images.shape, images.dtype)
    return jnp.where((chosen[:, None, None] & inside)[..., None], noise, images)


def _random_boxes(
    key: jax.Array, batch_size: int, height: int, width: int, erasing: Erasing
) -> jax.Array:
    """Return masks of random boxes, bool [batch_size, height, width].

    Each is the first box tried that fits into the image; the mask is empty if none fits.
    """
    area_key, ratio_key, top_key, left_key = jax.random.split(key, 4)
    shape = (batch_size, _ERASE_ATTEMPTS)
    low, high = erasing.area
    area = jax.random.uniform(area_key, shape, minval=low, maxval=high) * height * width
    low, high = (math.log(ratio) for ratio in erasing.ratio)
    ratio = jnp.exp(jax.random.uniform(ratio_key, shape, minval=low, maxval=high))
    h, w = jnp.round(jnp.sqrt(area * ratio)), jnp.round(jnp.sqrt(area / ratio))
    fits = (h < height) & (w < width)
    first = jnp.argmax(fits, axis=1)[:, None]
    h, w = (jnp.take_along_axis(side, first, axis=1) for side in (h, w))
    top = jnp.floor(jax.random.uniform(top_key, (batch_size, 1)) * (height - h + 1))
    left = jnp.floor(jax.random.uniform(left_key, (batch_size, 1)) * (width - w + 1))
    y, x = jnp.arange(height), jnp.arange(width)
    rows, columns = (y >= top) & (y < top + h), (x >= left) & (x < left + w)
    return (rows[:, :, None] & columns[:, None, :]) & fits.any(axis=1)[:, None, None]


def mix(
    images: jax.Array, labels: jax.Array, mixing: Mixing, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mix a batch's images and labels with their neighbours', by mixup or CutMix.

    Args:
        images: floating, [B, H, W, channels], B even.
        labels: float32 [B, num_classes].
        mixing: the methods and their probabilities.
        key: random key; method and share are drawn once for the whole batch, as in the released
            recipe.

    Returns:
        Images and labels; a label's share is exactly its image's share of the pixels (CutMix) or
        its weight (mixup).
    """
    apply_key, switch_key, mixup_key, cutmix_key, box_key = jax.random.split(key, 5)
    _, height, width, _ = images.shape
    applied = jax.random.bernoulli(apply_key, mixing.prob)
    if mixing.mixup and mixing.cutmix:
        use_cutmix: jax.Array | bool = jax.random.bernoulli(switch_key, mixing.switch_prob)
    else:
        use_cutmix = bool(mixing.cutmix)
    weight = _beta(mixup_key, mixing.mixup)
    box = _cutmix_box(box_key, _beta(cutmix_key, mixing.cutmix), height, width)
    share = jnp.where(use_cutmix, 1.0 - box.mean(), weight)
    share = jnp.where(applied, share, 1.0)
    # The weight of each pixel of the image itself; the neighbour's is 1 minus that.
    mask = jnp.where(use_cutmix, 1.0 - box, jnp.full_like(box, 1.0) * weight)
    mask = jnp.where(applied, mask, 1.0)[None, :, :, None].astype(images.dtype)
    images = images * mask + _swap_neighbours(images) * (1.0 - mask)
    return images, labels * share + _swap_neighbours(labels) * (1.0 - share)


def _swap_neighbours(rows: jax.Array) -> jax.Array:
    """Exchange rows 2k and 2k + 1."""
    pairs = rows.reshape(-1, 2, *rows.shape[1:])
    return pairs[:, ::-1].reshape(rows.shape)


def _beta(key: jax.Array, alpha: float) -> jax.Array:
    """Draw from Beta(α, α); return 1 (no mixing) if the method is off (α = 0)."""
    return jax.random.beta(key, alpha, alpha) if alpha else jnp.ones(())


def _cutmix_box(key: jax.Array, share: jax.Array, height: int, width: int) -> jax.Array:
    """Return a float32 mask [height, width]: 1 in the box that the neighbour fills.

    The box's area is a share of 1 - `share` before it is clipped at the image's edge; its centre
    may be any pixel.
    """
    side = jnp.sqrt(1.0 - share)
    h, w = height * side, width * side
    y_key, x_key = jax.random.split(key)
    centre_y = jax.random.randint(y_key, (), 0, height)
    centre_x = jax.random.randint(x_key, (), 0, width)

    def within(positions: jax.Array, centre: jax.Array, length: jax.Array) -> jax.Array:
        first = centre - length // 2
        return (positions >= first) & (positions < first + length // 2 * 2)

    rows = within(jnp.arange(height), centre_y, h)
    columns = within(jnp.arange(width), centre_x, w)
    return (rows[:, None] & columns[None, :]).astype(jnp.float32)
