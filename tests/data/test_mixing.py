import collections
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convit_jax.config import template
from convit_jax.data.mixing import Erasing, Mixing, _cutmix_box, erase, mix, normalise, soft_labels

DRAWS = 2000


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
        return mix(images, labels, mixing, key)

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
    out, labels = mix(images, jnp.eye(6), Mixing(mixup=0.8), jax.random.key(3))
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
    boxes = np.asarray(jax.lax.map(lambda key: _cutmix_box(key, share, height, width), keys))
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
    assert set(np.unique(boxes)) <= {0.0, 1.0}
    assert counts.keys() == expected.keys()
    for box, count in counts.items():
        mean = 3000 * expected[box] / (height * width)
        assert abs(count - mean) < 5 * mean**0.5


def test_mixing_preserves_the_dtype():
    images = jnp.ones((4, 6, 6, 3), jnp.bfloat16)
    out, labels = mix(images, jnp.eye(4), Mixing(mixup=0.8, cutmix=1.0), jax.random.key(0))
    assert (out.dtype, labels.dtype) == (jnp.bfloat16, jnp.float32)
    erased = erase(images, Erasing(prob=1.0), jax.random.key(0))
    assert erased.dtype == jnp.bfloat16


def test_defaults_equal_the_configurations_and_change_nothing():
    augment = template().augment
    assert dataclasses.astuple(Mixing()) == (
        augment.mixup, augment.cutmix, augment.mix_prob, augment.mix_switch_prob,
    )  # fmt: skip
    assert dataclasses.astuple(Erasing()) == (
        augment.erase, augment.erase_area, augment.erase_ratio,
    )  # fmt: skip
    assert dataclasses.astuple(Mixing()) == (0.0, 0.0, 1.0, 0.5)
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
