"""What happens to a batch on the device, inside the training step: pure functions of (batch, key).

Images are mixed with their neighbours in the batch, rows 2k and 2k + 1 with each other: both lie on
one device, so nothing is sent between devices, and the mixture is the same on any number of them.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

# Boxes tried for an image before it is left whole.
_ERASE_ATTEMPTS = 10


@dataclasses.dataclass(frozen=True)
class Mixing:
    """Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019), one drawn for each batch.

    Attributes:
        mixup, cutmix: α of the Beta(α, α) that the share of the image itself is drawn from; 0 for
            none.
        prob: chance that a batch is mixed at all.
        switch_prob: chance of CutMix where there are both.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    prob: float = 1.0
    switch_prob: float = 0.5

    @property
    def on(self) -> bool:
        """Whether there is anything to mix."""
        return bool((self.mixup or self.cutmix) and self.prob)


@dataclasses.dataclass(frozen=True)
class Erasing:
    """Random erasing (Zhong et al. 2020), pixel by pixel: a box of normal noise.

    Attributes:
        prob: chance for each image.
        area: range of the box's share of the image.
        ratio: range of its height over its width, log-uniform.
    """

    prob: float = 0.0
    area: tuple[float, ...] = (0.02, 1 / 3)
    ratio: tuple[float, ...] = (0.3, 1 / 0.3)


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


def erase(images: jax.Array, erasing: Erasing, key: jax.Array) -> jax.Array:
    """Fills a box of some images with noise; for normalised images, [B, H, W, channels]."""
    chosen_key, box_key, noise_key = jax.random.split(key, 3)
    count, height, width, _ = images.shape
    chosen = jax.random.bernoulli(chosen_key, erasing.prob, (count,))
    inside = _random_boxes(box_key, count, height, width, erasing)
    noise = jax.random.normal(noise_key, images.shape, images.dtype)
    return jnp.where((chosen[:, None, None] & inside)[..., None], noise, images)


def _random_boxes(
    key: jax.Array, count: int, height: int, width: int, erasing: Erasing
) -> jax.Array:
    """The pixels of the first box tried that fits, bool [count, height, width]; else none."""
    area_key, ratio_key, top_key, left_key = jax.random.split(key, 4)
    tries = (count, _ERASE_ATTEMPTS)
    low, high = erasing.area
    area = jax.random.uniform(area_key, tries, minval=low, maxval=high) * height * width
    low, high = (math.log(ratio) for ratio in erasing.ratio)
    ratio = jnp.exp(jax.random.uniform(ratio_key, tries, minval=low, maxval=high))
    h, w = jnp.round(jnp.sqrt(area * ratio)), jnp.round(jnp.sqrt(area / ratio))
    fits = (h < height) & (w < width)
    first = jnp.argmax(fits, axis=1)[:, None]
    h, w = (jnp.take_along_axis(side, first, axis=1) for side in (h, w))
    top = jnp.floor(jax.random.uniform(top_key, (count, 1)) * (height - h + 1))
    left = jnp.floor(jax.random.uniform(left_key, (count, 1)) * (width - w + 1))
    y, x = jnp.arange(height), jnp.arange(width)
    rows, columns = (y >= top) & (y < top + h), (x >= left) & (x < left + w)
    return (rows[:, :, None] & columns[:, None, :]) & fits.any(axis=1)[:, None, None]


def mix(
    images: jax.Array, labels: jax.Array, mixing: Mixing, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mixes a batch's images and labels with their neighbours', by mixup or CutMix.

    Args:
        images: floating, [B, H, W, channels], B even.
        labels: float32 [B, num_classes].
        mixing: how.
        key: one draw decides for the whole batch, as in the released recipe.

    Returns:
        Images and labels; a label's share is exactly the share of the pixels, or of the weight,
        that its image has.
    """
    on_key, switch_key, mixup_key, cutmix_key, box_key = jax.random.split(key, 5)
    _, height, width, _ = images.shape
    on = jax.random.bernoulli(on_key, mixing.prob)
    if mixing.mixup and mixing.cutmix:
        cut = jax.random.bernoulli(switch_key, mixing.switch_prob)
    else:
        cut = bool(mixing.cutmix)
    weight = _beta(mixup_key, mixing.mixup)
    box = _cutmix_box(box_key, _beta(cutmix_key, mixing.cutmix), height, width)
    share = jnp.where(cut, 1.0 - box.mean(), weight)
    share = jnp.where(on, share, 1.0)
    # The weight of each pixel of the image itself; the neighbour has the rest.
    own = jnp.where(cut, 1.0 - box, jnp.full_like(box, 1.0) * weight)
    own = jnp.where(on, own, 1.0)[None, :, :, None].astype(images.dtype)
    images = images * own + _neighbours(images) * (1.0 - own)
    return images, labels * share + _neighbours(labels) * (1.0 - share)


def _neighbours(rows: jax.Array) -> jax.Array:
    """Rows 2k and 2k + 1 exchanged."""
    pairs = rows.reshape(-1, 2, *rows.shape[1:])
    return pairs[:, ::-1].reshape(rows.shape)


def _beta(key: jax.Array, alpha: float) -> jax.Array:
    """A draw of Beta(α, α); without the method (α = 0) nothing is mixed."""
    return jax.random.beta(key, alpha, alpha) if alpha else jnp.ones(())


def _cutmix_box(key: jax.Array, share: jax.Array, height: int, width: int) -> jax.Array:
    """float32 [height, width]: 1 in the box that the neighbour fills.

    The box has 1 - share of the area before it is cut off at the image's edge; its centre may lie
    anywhere.
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
