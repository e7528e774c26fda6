import collections
import json
import math

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from convit_jax.data.images import image_operations
from convit_jax.data.images.randaugment import INCREASING, PLAIN, RandAugment, parse_randaugment
from convit_jax.errors import InputError


@pytest.fixture(scope="module")
def references(reference_data):
    """Results of Pillow and timm: of each operation on `input`, at some levels and either sign."""
    positions = json.loads((reference_data / "randaugment.json").read_text())
    stacked = np.asarray(Image.open(reference_data / "randaugment.webp"))
    images = stacked.reshape(-1, 72, 96, 3)
    return {name: images[position] for name, position in positions.items()}


@pytest.mark.parametrize("operation", INCREASING)
def test_every_operation_is_within_a_grey_level_of_the_reference(operation, references):
    num_compared = 0
    for name, expected in references.items():
        if not name.startswith(f"{operation}/"):
            continue
        _, level, sign = name.split("/")
        actual = INCREASING[operation](references["input"], float(level), sign == "neg")
        difference = np.abs(actual.astype(int) - expected)
        print(f"{name}: mean {difference.mean():.3f}, largest {difference.max()}")
        assert difference.mean() <= 1
        assert np.percentile(difference, 99) <= 3
        assert difference.max() <= 3
        num_compared += 1
    assert num_compared >= 4


@pytest.mark.parametrize("operations", [INCREASING, PLAIN])
@pytest.mark.parametrize("level", [0.0, 10.0])
@pytest.mark.parametrize("shape", [(9, 7, 3), (1, 1, 3), (2, 40, 3)])
def test_no_operation_fails_at_the_ends_of_its_scale(operations, level, shape):
    for value in (0, 255):
        flat = np.full(shape, value, np.uint8)
        for operation in operations.values():
            for negative in (False, True):
                assert operation(flat, level, negative).shape == shape


def make_images():
    """Images that distinguish the operations: noise, low contrast, a ramp, a coloured corner."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (24, 31, 3)).astype(np.uint8)
    ramp = np.broadcast_to(np.arange(0, 248, 8, dtype=np.uint8)[None, :, None], (24, 31, 3)).copy()
    corner = np.full((24, 31, 3), 90, np.uint8)
    corner[:6, :9] = (250, 10, 130)
    return {"noise": noise, "low contrast": 100 + noise // 8, "ramp": ramp, "corner": corner}


@pytest.mark.parametrize("name", make_images())
@pytest.mark.parametrize("level", [0.0, 0.7, 3.3, 5.0, 7.4, 9.99, 10.0])
def test_pixelwise_operations_equal_pillows_at_any_level(level, name):
    """All operations of the notation without inc1, and those of inc1 that have no sign."""
    image = make_images()[name]
    pil_image = Image.fromarray(image)
    share = level / 10
    added = min(int(share * 110), 128)

    def highest(bits):
        """A table of the values' highest bits; Pillow's own function does not accept 0 bits."""
        return [value // 2 ** (8 - bits) * 2 ** (8 - bits) for value in range(256)] * 3

    expected = {
        "AutoContrast": ImageOps.autocontrast(pil_image),
        "Equalize": ImageOps.equalize(pil_image),
        "Invert": ImageOps.invert(pil_image),
        "SolarizeAdd": pil_image.point(
            [min(v + added, 255) if v < 128 else v for v in range(256)] * 3
        ),
        "Posterize": pil_image.point(highest(int(share * 4))),
        "PosterizeIncreasing": pil_image.point(highest(4 - int(share * 4))),
        "Solarize": ImageOps.solarize(pil_image, int(share * 256)),
        "SolarizeIncreasing": ImageOps.solarize(pil_image, 256 - int(share * 256)),
        "Color": ImageEnhance.Color(pil_image).enhance(0.1 + 1.8 * share),
        "Contrast": ImageEnhance.Contrast(pil_image).enhance(0.1 + 1.8 * share),
        "Brightness": ImageEnhance.Brightness(pil_image).enhance(0.1 + 1.8 * share),
        "Sharpness": ImageEnhance.Sharpness(pil_image).enhance(0.1 + 1.8 * share),
    }
    for operation, pillows in expected.items():
        actual = (INCREASING | PLAIN)[operation](image, level, True).astype(int)
        difference = np.abs(actual - np.asarray(pillows))
        assert difference.max() <= 1, operation
        if operation not in ("Color", "Sharpness"):  # the others are look-up tables
            assert difference.mean() < 0.05, operation


def test_posterize_to_0_bits_is_black():
    image = np.full((4, 4, 3), 200, np.uint8)
    assert not image_operations.posterize(image, 0).any()
    assert not INCREASING["PosterizeIncreasing"](image, 10.0, False).any()


def test_timms_notation():
    assert parse_randaugment("rand-m9-mstd0.5-inc1") == RandAugment(
        magnitude=9.0, magnitude_std=0.5, increasing=True
    )
    assert parse_randaugment("rand-m5-n3-p0.7-mmax8-mstd100") == RandAugment(
        magnitude=5.0, num_ops=3, prob=0.7, max_magnitude=8.0, magnitude_std=math.inf
    )
    assert parse_randaugment("rand") == RandAugment(9.0, 2, 0.5, 0.0, 10.0, False)
    assert parse_randaugment("rand-m0-p0-mmax0-mstd99") == RandAugment(0.0, 2, 0.0, 99.0, 0.0)
    assert parse_randaugment("rand-m10-n1-p1-mmax10-inc0") == RandAugment(10.0, 1, 1.0, 0.0, 10.0)
    kinds = [type(value) for value in vars(parse_randaugment("rand-m9-n2-p1-inc1")).values()]
    assert kinds == [float, int, float, float, float, bool]


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("augmix-m3", "expected a policy like 'rand-m9-mstd0.5-inc1'"),
        ("rand-x3", "'x3' is none of m, n, p, mstd, mmax, inc followed by a number"),
        ("rand-m", "'m' is none of"),
        ("rand-m12", "expected m from 0 to 10"),
        ("rand-n0", "expected n of at least 1"),
        ("rand-p2", "expected p from 0 to 1"),
        ("rand-mmax11", "expected mmax from 0 to 10"),
    ],
)
def test_invalid_policies_are_input_errors(policy, message):
    with pytest.raises(InputError, match=message):
        parse_randaugment(policy)


def test_levels_are_distributed_around_the_magnitude_and_stay_in_range():
    rng = np.random.default_rng(0)
    policy = parse_randaugment("rand-m9-mstd0.5")
    levels = np.array([policy._level(rng) for _ in range(3000)])
    assert abs(levels.mean() - 9) < 0.05
    assert 0.4 < levels.std() < 0.55
    assert levels.max() == 10.0
    low = parse_randaugment("rand-m1-mstd2")
    levels = np.array([low._level(rng) for _ in range(1000)])
    assert 0.2 < np.mean(levels == 0) < 0.4  # those that would be below 0
    assert np.any((levels > 0) & (levels < 0.5))
    limited = parse_randaugment("rand-m9-mstd0.5-mmax9")
    assert max(limited._level(rng) for _ in range(100)) == 9.0
    uniform = parse_randaugment("rand-m9-mstd100")
    levels = np.array([uniform._level(rng) for _ in range(3000)])
    assert abs(levels.mean() - 4.5) < 0.2
    assert levels.max() <= 9.0


# The fifteen operations of the recipe, and those without a sign.
ALL = {
    "AutoContrast", "Equalize", "Invert", "Rotate", "PosterizeIncreasing", "SolarizeIncreasing",
    "SolarizeAdd", "ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing",
    "SharpnessIncreasing", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel",
}  # fmt: skip
UNSIGNED = {
    "AutoContrast", "Equalize", "Invert", "PosterizeIncreasing", "SolarizeIncreasing",
    "SolarizeAdd",
}  # fmt: skip


def test_every_operation_and_either_sign_are_equally_frequent(references):
    """Of 4,500 draws, each of the fifteen operations gets 300, within five standard deviations."""
    assert set(INCREASING) == ALL
    assert set(PLAIN) == {name.removesuffix("Increasing") for name in ALL}
    image = np.ascontiguousarray(references["input"][20:44, 30:62])
    outcomes = {
        operation(image, 9.0, negative).tobytes(): (name, negative and name not in UNSIGNED)
        for name, operation in INCREASING.items()
        for negative in (False, True)
    }
    assert len(outcomes) == len(ALL) + len(ALL - UNSIGNED)
    policy, rng = parse_randaugment("rand-m9-n1-p1-inc1"), np.random.default_rng(0)
    counts = collections.Counter(outcomes[policy(image, rng).tobytes()] for _ in range(4500))
    for name in ALL:
        positive, negative = counts[name, False], counts[name, True]
        assert 215 < positive + negative < 385, name
        if name not in UNSIGNED:
            assert 0.35 < negative / (positive + negative) < 0.65, name
    num_negative = sum(count for (_, is_negative), count in counts.items() if is_negative)
    num_signed = sum(count for (name, _), count in counts.items() if name not in UNSIGNED)
    assert abs(num_negative / num_signed - 0.5) < 4.5 * 0.5 / num_signed**0.5

    # Application and sign are drawn independently.
    policy = parse_randaugment("rand-m9-n1-p0.5-inc1")
    draws = [outcomes.get(policy(image, rng).tobytes()) for _ in range(1500)]
    signs = [draw[1] for draw in draws if draw and draw[0] not in UNSIGNED]
    assert abs(np.mean(signs) - 0.5) < 0.1


class ScriptedGenerator:
    """A random generator that returns given draws, one after another."""

    def __init__(self, *draws):
        self.draws = list(draws)

    def integers(self, high, size):
        assert (high, size) == (15, 1)
        return [self.draws.pop(0)]

    def random(self, size):
        return np.array([self.draws.pop(0) for _ in range(size)])


@pytest.mark.parametrize("prob", [0.3, 0.7])
def test_the_probabilities_to_the_last_bit(prob, references):
    """An operation is applied if the draw is below `prob`, and negative if it is below 1/2."""
    image, rotate = references["input"], list(INCREASING).index("Rotate")
    policy = parse_randaugment(f"rand-m9-n1-p{prob}-inc1")
    rotated = {sign: INCREASING["Rotate"](image, 9.0, sign) for sign in (False, True)}
    for draw, applied in ((prob - 1e-9, True), (prob + 1e-9, False)):
        for sign_draw, negative in ((0.5 - 1e-9, True), (0.5 + 1e-9, False)):
            out = policy(image, ScriptedGenerator(rotate, draw, sign_draw))
            assert np.array_equal(out, rotated[negative] if applied else image)


def test_operations_in_a_sequence_are_drawn_independently(references):
    """As many different pairs of operations occur as two independent draws give."""
    image = np.ascontiguousarray(references["input"][20:44, 30:62])
    outcomes = {
        second(first(image, 9.0, a), 9.0, b).tobytes()
        for first in INCREASING.values()
        for second in INCREASING.values()
        for a in (False, True)
        for b in (False, True)
    }
    policy, rng = parse_randaugment("rand-m9-n2-p1-inc1"), np.random.default_rng(0)
    results = {policy(image, rng).tobytes() for _ in range(1500)}
    assert results <= outcomes
    assert len(results) > 0.7 * len(outcomes)


def test_each_operation_is_applied_with_its_probability(references):
    image = references["input"]

    def share_unchanged(policy):
        unchanged = [
            np.array_equal(parse_randaugment(policy)(image, np.random.default_rng(seed)), image)
            for seed in range(300)
        ]
        return np.mean(unchanged)

    assert share_unchanged("rand-m9-n1-p1-inc1") < 0.1
    assert abs(share_unchanged("rand-m9-n1-p0.5-inc1") - 0.5) < 0.12
    assert share_unchanged("rand-m9-p0") == 1.0
