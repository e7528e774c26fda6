"""Batch augmentation on the device, inside the training step: pure functions of (batch, keys).

Rows 2k and 2k + 1 of the batch are mixed with each other: both are on one device, so nothing is
communicated between devices. All random draws are functions of the step's key and of a row's number
in the global batch, or its group's: the result is the same on any number of devices, and if the
batch is computed in parts.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

# Boxes tried for an image before it is left unchanged.
_ERASE_ATTEMPTS = 10


@dataclasses.dataclass(frozen=True)
class Mixing:
    """Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019); one of them is drawn for each group.

    Attributes:
        mixup, cutmix: α of the Beta(α, α) from which an image's own share is drawn; 0 turns the
            method off.
        prob: probability that a group is mixed.
        switch_prob: probability of CutMix if both methods are on.
        group: number of consecutive rows of the global batch that share all draws, even; 0, or
            more than there are: all rows. In the released code these are the rows of one GPU.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    prob: float = 1.0
    switch_prob: float = 0.5
    group: int = 0

    @property
    def enabled(self) -> bool:
        """Whether any group is mixed."""
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


def row_keys(key: jax.Array, count: int) -> jax.Array:
    """Return a random key for each of `count` rows, or groups of rows: a function of its number."""
    return jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(count))


def erase(
    images: jax.Array, erasing: Erasing, keys: jax.Array, *, in_pairs: bool = False
) -> jax.Array:
    """Fill a random box of some images with noise.

    Few pixels are filled, so the two rows of a pair can share one draw of noise. Every other pixel
    of the second row, as on a chessboard, has the opposite sign: each image's noise remains
    independent from pixel to pixel, and over an area the two are uncorrelated.

    Args:
        images: normalised, [B, H, W, channels].
        erasing: probability and sizes.
        keys: random key of each image, [B].
        in_pairs: whether rows 2k and 2k + 1, which `mix` needs together, share the noise; B is
            even then.
    """
    _, height, width, channels = images.shape

    def draw_box(key: jax.Array) -> jax.Array:
        chosen_key, box_key, _ = jax.random.split(key, 3)
        chosen = jax.random.bernoulli(chosen_key, erasing.prob)
        return jnp.where(chosen, _erased_box(box_key, height, width, erasing), 0)

    def draw_noise(key: jax.Array) -> jax.Array:
        return jax.random.normal(
            jax.random.split(key, 3)[2], (height, width, channels), images.dtype
        )

    inside = _box_masks(jax.vmap(draw_box)(keys), height, width)[..., None]
    if not in_pairs:
        return jnp.where(inside, jax.vmap(draw_noise)(keys), images)
    noise = jax.vmap(draw_noise)(keys[::2])
    y, x = jnp.ogrid[:height, :width]
    signs = (1 - 2 * ((y + x) % 2))[..., None].astype(images.dtype)
    pairs, insides = _split_pairs(images), _split_pairs(inside)
    first = jnp.where(insides[0], noise, pairs[0])
    second = jnp.where(insides[1], noise * signs, pairs[1])
    return _join_pairs(first, second)


def _erased_box(key: jax.Array, height: int, width: int, erasing: Erasing) -> jax.Array:
    """Return (top, bottom, left, right) of a random box, int32 [4].

    It is the first box tried that fits into the image; empty if none fits.
    """
    area_key, ratio_key, top_key, left_key = jax.random.split(key, 4)
    shape = (_ERASE_ATTEMPTS,)
    low, high = erasing.area
    area = jax.random.uniform(area_key, shape, minval=low, maxval=high) * height * width
    low, high = (math.log(ratio) for ratio in erasing.ratio)
    ratio = jnp.exp(jax.random.uniform(ratio_key, shape, minval=low, maxval=high))
    h, w = jnp.round(jnp.sqrt(area * ratio)), jnp.round(jnp.sqrt(area / ratio))
    fits = (h < height) & (w < width)
    first = jnp.argmax(fits)
    h, w = h[first], w[first]
    top = jnp.floor(jax.random.uniform(top_key) * (height - h + 1))
    left = jnp.floor(jax.random.uniform(left_key) * (width - w + 1))
    box = jnp.stack([top, top + h, left, left + w]).astype(jnp.int32)
    return jnp.where(fits.any(), box, 0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MixingDraws:
    """What was drawn for each row of a batch.

    Attributes:
        weight: weight of the image's own pixels outside the box, float32 [B]; 1 except for mixup.
        box: (top, bottom, left, right) of the box that the neighbour fills, int32 [B, 4]; bottom
            and right are exclusive. Empty except for CutMix.
    """

    weight: jax.Array
    box: jax.Array


def draw_mixing(
    mixing: Mixing, key: jax.Array, batch_size: int, image_size: tuple[int, int]
) -> MixingDraws:
    """Draw, once for each group of rows, whether and how they are mixed.

    The draws of a group are a function of `key` and the group's number.

    Args:
        mixing: the methods, their probabilities and the size of a group.
        key: random key of the step.
        batch_size: number of rows, from the first of the global batch.
        image_size: (height, width).
    """
    group = mixing.group or batch_size
    keys = row_keys(key, -(-batch_size // group))
    of_groups = jax.vmap(functools.partial(_draw_group, mixing, image_size))(keys)
    group_of_row = jnp.arange(batch_size) // group
    return jax.tree.map(lambda draws: draws[group_of_row], of_groups)


def _draw_group(mixing: Mixing, image_size: tuple[int, int], key: jax.Array) -> MixingDraws:
    """Draw weight, a scalar, and box, [4], of one group."""
    apply_key, switch_key, mixup_key, cutmix_key, box_key = jax.random.split(key, 5)
    applied = jax.random.bernoulli(apply_key, mixing.prob)
    if mixing.mixup and mixing.cutmix:
        use_cutmix: jax.Array | bool = jax.random.bernoulli(switch_key, mixing.switch_prob)
    else:
        use_cutmix = bool(mixing.cutmix)
    weight = _beta(mixup_key, mixing.mixup)
    box = _cutmix_box(box_key, _beta(cutmix_key, mixing.cutmix), *image_size)
    return MixingDraws(
        weight=jnp.where(applied & jnp.logical_not(use_cutmix), weight, 1.0),
        box=jnp.where(applied & use_cutmix, box, 0),
    )


def mix(images: jax.Array, labels: jax.Array, draws: MixingDraws) -> tuple[jax.Array, jax.Array]:
    """Mix a batch's images and labels with their neighbours', by mixup or CutMix.

    Args:
        images: floating, [B, H, W, channels], B even.
        labels: float32 [B, num_classes].
        draws: of each row, from `draw_mixing`.

    Returns:
        Images and labels; a label's share is exactly its image's share of the pixels (CutMix) or
        its weight (mixup).
    """
    _, height, width, _ = images.shape
    top, bottom, left, right = draws.box.T
    area = (bottom - top) * (right - left)
    share = (draws.weight * (1.0 - area / (height * width)))[:, None]
    # The weight of each pixel of the image itself; the neighbour's is 1 minus that.
    inside = _box_masks(draws.box, height, width)
    mask = jnp.where(inside, 0.0, draws.weight[:, None, None])[..., None].astype(images.dtype)
    return _mix_pairs(images, mask), _mix_pairs(labels, share)


def _mix_pairs(rows: jax.Array, weight: jax.Array) -> jax.Array:
    """weight · row + (1 - weight) · neighbour, where rows 2k and 2k + 1 are neighbours.

    The two rows of a pair are computed separately, which on TPUs costs less than exchanging them in
    an array of all rows first.
    """
    (first, second), (of_first, of_second) = _split_pairs(rows), _split_pairs(weight)
    return _join_pairs(
        first * of_first + second * (1.0 - of_first), second * of_second + first * (1.0 - of_second)
    )


def _split_pairs(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the even and the odd rows of [B, …], [B / 2, …] each."""
    first, second = jnp.unstack(rows.reshape(-1, 2, *rows.shape[1:]), axis=1)
    return first, second


def _join_pairs(first: jax.Array, second: jax.Array) -> jax.Array:
    """Return the rows of which `_split_pairs` returns these: [B / 2, …] each → [B, …]."""
    return jnp.stack([first, second], axis=1).reshape(-1, *first.shape[1:])


def _box_masks(boxes: jax.Array, height: int, width: int) -> jax.Array:
    """(top, bottom, left, right) [B, 4] → bool [B, height, width]: whether a pixel is inside."""
    top, bottom, left, right = boxes.T[:, :, None]
    y, x = jnp.arange(height), jnp.arange(width)
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
    return rows[:, :, None] & columns[:, None, :]


def _beta(key: jax.Array, alpha: float) -> jax.Array:
    """Draw from Beta(α, α); return 1 (no mixing) if the method is off (α = 0)."""
    return jax.random.beta(key, alpha, alpha) if alpha else jnp.ones(())


def _cutmix_box(key: jax.Array, share: jax.Array, height: int, width: int) -> jax.Array:
    """Return (top, bottom, left, right) of the box that the neighbour fills, int32 [4].

    The box's area is a share of 1 - `share` before it is clipped at the image's edge; its centre
    may be any pixel.
    """
    side = jnp.sqrt(1.0 - share)

    def interval(key: jax.Array, length: int) -> list[jax.Array]:
        centre = jax.random.randint(key, (), 0, length)
        half = (length * side // 2).astype(jnp.int32)
        return [jnp.maximum(centre - half, 0), jnp.minimum(centre + half, length)]

    y_key, x_key = jax.random.split(key)
    return jnp.stack(interval(y_key, height) + interval(x_key, width))
