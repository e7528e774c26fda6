import collections
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convit_jax.config import template
from convit_jax.data.mixing import (
    Erasing,
    Mixing,
    MixingDraws,
    _cutmix_box,
    draw_mixing,
    mix,
    normalise,
    row_keys,
    soft_labels,
)
from convit_jax.data.mixing import erase as erase_rows
from tests.helpers import assert_trees_close

DRAWS = 2000


def draw_and_mix(images, labels, mixing, key):
    """Mix a whole batch by draws from `key`."""
    return mix(images, labels, draw_mixing(mixing, key, len(images), images.shape[1:3]))


def erase(images, erasing, key):
    """Erase in a whole batch by draws from `key`."""
    return erase_rows(images, erasing, row_keys(key, len(images)))


def test_normalise_is_in_units_of_the_deviation_from_the_mean():
    images = jnp.asarray([[[[0, 255, 51]]]], jnp.uint8)
    out = normalise(images, (0.5, 0.5, 0.2), (0.5, 0.25, 1.0))
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out[0, 0, 0], [-1.0, 2.0, 0.0], atol=1e-6)


def test_soft_labels_conserve_mass():
    labels = soft_labels(jnp.asarray([2, 0]), 4, 0.2)
    np.testing.assert_allclose(labels, [[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]])
    np.testing.assert_allclose(labels.sum(-1), 1.0)


def mixed_pair(mixing, height=24, width=32):
    """Mix a black image of class 0 with a white one of class 1, `DRAWS` times.

    Returns:
        The images in the black image's row [DRAWS, height, width], and the labels of both rows
        [DRAWS, 2, 2].
    """
    images = jnp.stack([jnp.zeros((height, width, 1)), jnp.ones((height, width, 1))])
    labels = jnp.eye(2)

    @jax.jit
    def draw(key):
        return draw_and_mix(images, labels, mixing, key)

    mixed_images, mixed_labels = jax.lax.map(draw, jax.random.split(jax.random.key(0), DRAWS))
    return np.asarray(mixed_images)[:, 0, ..., 0], np.asarray(mixed_labels)


@pytest.mark.parametrize(
    "mixing", [Mixing(mixup=0.8), Mixing(cutmix=1.0), Mixing(mixup=0.8, cutmix=1.0, prob=0.7)]
)
def test_a_labels_share_equals_its_pixels_share_and_mass_is_conserved(mixing):
    images, labels = mixed_pair(mixing)
    np.testing.assert_allclose(labels.sum(-1), 1.0, atol=1e-6)
    np.testing.assert_allclose(labels[:, 0, 1], images.mean((1, 2)), atol=1e-5)
    np.testing.assert_allclose(labels[:, 1], labels[:, 0, ::-1], atol=1e-6)


def test_mixup_draws_beta_and_cutmix_a_box():
    images, labels = mixed_pair(Mixing(mixup=0.8))
    assert np.ptp(images, axis=(1, 2)).max() == 0
    # Beta(α, α) has mean ½ and variance 1 / (4 (2α + 1)).
    assert abs(labels[:, 0, 0].mean() - 0.5) < 0.03
    assert abs(labels[:, 0, 0].var() - 1 / (4 * 2.6)) < 0.01

    images, labels = mixed_pair(Mixing(cutmix=1.0))
    assert set(np.unique(images)) <= {0.0, 1.0}
    for image in images[:200]:
        rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
        box = image[np.ix_(rows, columns)]
        assert box.all()
        assert image.sum() == box.size
        if len(rows):
            assert len(rows) == rows[-1] - rows[0] + 1
    # The share is uniform before boxes are clipped at the edge, as half of them are.
    assert 0.25 < images.mean() < 0.5
    centre, corner = images[:, 12, 16].mean(), images[:, 0, 0].mean()
    assert centre > 1.5 * corner


def test_the_probabilities_of_mixing_and_of_switching():
    images, _ = mixed_pair(Mixing(mixup=0.8, cutmix=1.0, prob=0.6, switch_prob=0.25))
    untouched = (images == 0).all((1, 2))
    grey = ((images > 0) & (images < 1)).all((1, 2))
    assert abs(grey.mean() - 0.6 * 0.75) < 0.04
    assert 0.35 < untouched.mean() < 0.48  # 0.4, and empty boxes


def test_only_neighbours_are_mixed():
    images = jnp.arange(6.0)[:, None, None, None] * jnp.ones((6, 4, 4, 1))
    out, labels = draw_and_mix(images, jnp.eye(6), Mixing(mixup=0.8), jax.random.key(3))
    share = float(labels[0, 0])
    assert 0 < share < 1
    expected = [0, 1, 2, 3, 4, 5] * np.array(share) + np.array([1, 0, 3, 2, 5, 4]) * (1 - share)
    np.testing.assert_allclose(out[:, 0, 0, 0], expected, rtol=1e-5)


def test_erasing_fills_boxes_of_the_configured_sizes_with_noise():
    images = jnp.full((DRAWS, 32, 48, 2), 9.0)
    erasing = Erasing(prob=0.25)
    out = np.asarray(jax.jit(lambda x, key: erase(x, erasing, key))(images, jax.random.key(0)))
    changed = (out != 9.0).any(-1)
    hit = changed.any((1, 2))
    assert abs(hit.mean() - 0.25) < 0.04
    areas, ratios = [], []
    for mask in changed[hit]:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
        assert mask.sum() == height * width
        areas.append(mask.mean())
        ratios.append(height / width)
    assert 0.014 < min(areas) < 0.04  # whole pixels
    assert 0.25 < max(areas) < 0.36
    assert 0.25 < min(ratios) < 0.5
    assert 2.0 < max(ratios) < 4
    # Area and log ratio are uniform, except that long boxes fit less often.
    assert abs(np.mean(areas) - (0.02 + 1 / 3) / 2) < 5 * 0.0905 / len(areas) ** 0.5
    assert abs(np.std(np.log(ratios)) - 2 * math.log(1 / 0.3) / 12**0.5) < 0.06
    assert abs(np.mean(np.log(ratios))) < 0.15
    noise = out[changed]
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    assert np.abs(np.corrcoef(noise.T)[0, 1]) < 0.05


def test_the_position_of_an_erased_box_is_uniform():
    """Along either side, including both ends of the range."""
    images = jnp.full((DRAWS, 24, 36, 1), 9.0)
    erasing = Erasing(prob=1.0, area=(0.1, 0.1), ratio=(1.0, 1.0))  # 9 x 9 pixels
    out = np.asarray(jax.jit(lambda x, key: erase(x, erasing, key))(images, jax.random.key(0)))
    changed = out[..., 0] != 9.0
    assert set(changed.sum((1, 2))) == {81}
    tops, lefts = changed.any(2).argmax(1), changed.any(1).argmax(1)
    for positions, num_positions in ((tops, 24 - 9 + 1), (lefts, 36 - 9 + 1)):
        counts = np.bincount(positions, minlength=num_positions)
        assert len(counts) == num_positions
        expected = DRAWS / num_positions
        assert np.abs(counts - expected).max() < 5 * expected**0.5
    assert abs(np.corrcoef(tops, lefts)[0, 1]) < 0.1


def test_boxes_that_do_not_fit_are_redrawn_and_if_none_fits_the_image_is_unchanged():
    images = jnp.full((600, 20, 20, 1), 9.0)

    def erased(**options):
        out = erase(images, Erasing(prob=1.0, **options), jax.random.key(0))
        return np.asarray(out)[..., 0] != 9.0

    # Half of the area, 2 to 8 times as high as wide or vice versa: most draws are too long.
    for ratio in ((2.0, 8.0), (1 / 8, 1 / 2)):
        changed = erased(area=(0.4, 0.5), ratio=ratio)
        hit = changed.any((1, 2))
        assert 0.2 < hit.mean() < 1
        boxes = changed[hit]
        assert boxes.mean((1, 2)).min() > 0.35
        sides = boxes.any(2).sum(1), boxes.any(1).sum(1)
        assert max(sides[0].max(), sides[1].max()) == 19  # never the full side
    # The share of changed images reveals the number of draws: 1 - P(none of ten fits).
    images = jnp.full((4000, 20, 20, 1), 9.0)
    hit = erased(area=(0.4, 0.5), ratio=(1 / 8, 1 / 2)).any((1, 2))
    rng = np.random.default_rng(0)
    area = rng.uniform(0.4, 0.5, 10**6) * 400
    aspect = np.exp(rng.uniform(math.log(1 / 8), math.log(1 / 2), 10**6))
    fits = (np.round(np.sqrt(area * aspect)) < 20) & (np.round(np.sqrt(area / aspect)) < 20)
    assert abs(hit.mean() - (1 - (1 - fits.mean()) ** 10)) < 0.014
    assert not erased(area=(1.0, 1.0), ratio=(1.0, 1.0)).any()


@pytest.mark.parametrize(("side", "even_side"), [(0, 0), (1, 0), (2, 2), (3, 2), (5, 4), (8, 8)])
def test_cutmixs_box_has_even_sides_around_any_pixel_and_is_clipped_at_the_edge(side, even_side):
    """For every centre in an image of 8 x 12: it begins at centre - side // 2, as in the recipe."""
    height, width = 8, 12
    share = jnp.float32(1 - (side / 8) ** 2 - (1e-4 if side else 0))
    keys = jax.random.split(jax.random.key(0), 3000)
    sides = np.asarray(jax.lax.map(lambda key: _cutmix_box(key, share, height, width), keys))
    boxes = np.zeros((3000, height, width))
    for box, (top, bottom, left, right) in zip(boxes, sides, strict=True):
        box[top:bottom, left:right] = 1
    even_width = int(12 * side / 8 + 1e-3) // 2 * 2

    def interval(length, centre, box_side):
        positions = np.arange(length)
        return (positions >= centre - box_side // 2) & (positions < centre + box_side // 2)

    expected = collections.Counter(
        np.outer(interval(height, y, even_side), interval(width, x, even_width)).tobytes()
        for y in range(height)
        for x in range(width)
    )
    counts = collections.Counter((box == 1).tobytes() for box in boxes)
    assert sides.min() >= 0
    assert sides[:, :2].max() <= height
    assert sides[:, 2:].max() <= width
    assert counts.keys() == expected.keys()
    for box, count in counts.items():
        mean = 3000 * expected[box] / (height * width)
        assert abs(count - mean) < 5 * mean**0.5


def test_mixing_preserves_the_dtype():
    images = jnp.ones((4, 6, 6, 3), jnp.bfloat16)
    mixing = Mixing(mixup=0.8, cutmix=1.0)
    out, labels = draw_and_mix(images, jnp.eye(4), mixing, jax.random.key(0))
    assert (out.dtype, labels.dtype) == (jnp.bfloat16, jnp.float32)
    erased = erase(images, Erasing(prob=1.0), jax.random.key(0))
    assert erased.dtype == jnp.bfloat16


def test_defaults_equal_the_configurations_and_change_nothing():
    augment = template().augment
    assert dataclasses.astuple(Mixing()) == (
        augment.mixup, augment.cutmix, augment.mix_prob, augment.mix_switch_prob,
        augment.mix_group,
    )  # fmt: skip
    assert dataclasses.astuple(Erasing()) == (
        augment.erase, augment.erase_area, augment.erase_ratio,
    )  # fmt: skip
    assert dataclasses.astuple(Mixing()) == (0.0, 0.0, 1.0, 0.5, 0)
    assert Erasing().area == pytest.approx((0.02, 0.3333333))
    assert Erasing().ratio == pytest.approx((0.3, 3.3333333))
    assert Mixing(mixup=0.8).enabled
    assert Mixing(cutmix=1.0).enabled
    assert not Mixing().enabled
    assert not Mixing(mixup=0.8, prob=0.0).enabled
    assert type(Mixing(mixup=0.8).enabled) is bool


def test_the_same_key_gives_the_same_result():
    images = jax.random.normal(jax.random.key(1), (8, 16, 16, 3))
    first, second, other = (
        erase(images, Erasing(prob=1.0), jax.random.key(seed)) for seed in (2, 2, 3)
    )
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


GROUPED = Mixing(mixup=0.8, cutmix=1.0, prob=0.75, switch_prob=0.4, group=4)


def numpy_mixed(images, labels, draws):
    """Mix by explicit draws of each row, in NumPy."""
    images, labels = np.asarray(images, np.float64), np.asarray(labels, np.float64)
    mixed, mixed_labels = np.empty_like(images), np.empty_like(labels)
    for row, (weight, box) in enumerate(zip(*map(np.asarray, draws), strict=True)):
        neighbour, (top, bottom, left, right) = row ^ 1, box
        own = np.full(images.shape[1:3], float(weight))
        own[top:bottom, left:right] = 0
        mixed[row] = own[..., None] * images[row] + (1 - own[..., None]) * images[neighbour]
        mixed_labels[row] = own.mean() * labels[row] + (1 - own.mean()) * labels[neighbour]
    return mixed, mixed_labels


def test_mixing_by_given_draws_equals_numpys():
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(6, 5, 7, 2)).astype(np.float32), np.eye(6, dtype=np.float32)
    # Each row's own, though a pair always draws the same.
    weight = np.float32([0.3, 0.6, 1.0, 1.0, 1.0, 1.0])
    box = np.int32([[0, 0, 0, 0]] * 2 + [[1, 4, 2, 7], [0, 5, 3, 4]] + [[0, 0, 0, 0]] * 2)
    mixed = jax.jit(mix)(images, labels, MixingDraws(jnp.asarray(weight), jnp.asarray(box)))
    assert_trees_close(mixed, numpy_mixed(images, labels, (weight, box)), atol=1e-6)
    np.testing.assert_array_equal(mixed[0][4:], images[4:])


def test_each_group_of_rows_has_its_own_draws():
    """All four draws: of mixed or not, of mixup or CutMix, of the share and of the box."""
    num_groups = 1500
    draws = draw_mixing(GROUPED, jax.random.key(0), 4 * num_groups, (24, 32))
    weight, box = np.asarray(draws.weight), np.asarray(draws.box)
    # Rows of a group are equal, and groups differ.
    weight, box = weight.reshape(num_groups, 4), box.reshape(num_groups, 4, 4)
    assert (weight == weight[:, :1]).all()
    assert (box == box[:, :1]).all()
    weight, box = weight[:, 0], box[:, 0]
    mixed_up, cut = weight < 1, box.any(1)
    assert not (mixed_up & cut).any()
    # 4 standard errors; a few CutMix boxes are empty.
    assert abs(mixed_up.mean() - 0.75 * 0.6) < 4 * (0.45 * 0.55 / num_groups) ** 0.5
    assert abs(cut.mean() - 0.75 * 0.4) < 4 * (0.3 * 0.7 / num_groups) ** 0.5 + 0.01
    # Neighbouring groups are independent.
    assert abs(np.corrcoef(mixed_up[1:], mixed_up[:-1])[0, 1]) < 0.1
    assert len(np.unique(weight[mixed_up])) > 0.99 * mixed_up.sum()
    assert abs(weight[mixed_up].mean() - 0.5) < 0.05
    assert abs(weight[mixed_up].var() - 1 / (4 * 2.6)) < 0.015
    assert len(np.unique(box[cut], axis=0)) > 0.9 * cut.sum()


def test_the_draws_of_a_group_depend_on_its_number_only():
    """Not on the number of rows; so a preview of the first rows shows the step's images."""
    key = jax.random.key(1)
    every, first = (draw_mixing(GROUPED, key, size, (24, 32)) for size in (32, 10))
    assert_trees_close(jax.tree.map(lambda x: x[:10], every), first, rtol=0)
    images, labels = jnp.arange(32.0)[:, None, None, None] * jnp.ones((32, 24, 32, 1)), jnp.eye(32)
    mixed = draw_and_mix(images, labels, GROUPED, key)
    assert_trees_close(mixed, numpy_mixed(images, labels, (every.weight, every.box)), atol=1e-5)


def test_without_a_group_size_the_whole_batch_shares_its_draws():
    """And a group larger than the batch is the same."""
    for group in (0, 16, 64):
        mixing = dataclasses.replace(GROUPED, prob=1.0, group=group)
        draws = draw_mixing(mixing, jax.random.key(0), 16, (24, 32))
        whole = draw_mixing(dataclasses.replace(mixing, group=0), jax.random.key(0), 16, (24, 32))
        assert len(np.unique(draws.weight)) == len(np.unique(draws.box, axis=0)) == 1
        assert_trees_close(draws, whole, rtol=0)


def test_a_pair_of_erased_rows_shares_noise_that_is_uncorrelated_and_has_the_usual_moments():
    """The boxes are those of rows that are erased one by one."""
    images, erasing = jnp.full((200, 16, 18, 3), 9.0), Erasing(prob=0.9)
    keys = row_keys(jax.random.key(0), len(images))
    single = np.asarray(erase_rows(images, erasing, keys))
    paired = np.asarray(erase_rows(images, erasing, keys, in_pairs=True))
    np.testing.assert_array_equal(paired == 9.0, single == 9.0)
    np.testing.assert_array_equal(paired[::2], single[::2])
    first, second = paired[::2], paired[1::2]
    both = (first != 9.0) & (second != 9.0)
    y, x = np.ogrid[:16, :18]
    opposite = np.broadcast_to(((y + x) % 2 == 1)[..., None], both.shape)
    np.testing.assert_array_equal(second[both], np.where(opposite, -first, first)[both])
    noise = second[second != 9.0]
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    assert abs(np.corrcoef(first[both], second[both])[0, 1]) < 0.05


def test_the_draws_of_an_erased_row_depend_on_its_number_only():
    images = jnp.full((8, 16, 16, 3), 9.0)
    erased, first = (erase(images[:n], Erasing(prob=0.7), jax.random.key(0)) for n in (8, 4))
    np.testing.assert_array_equal(erased[:4], first)
    assert not np.array_equal(erased[0], erased[1])
