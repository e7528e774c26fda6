"""RandAugment (Cubuk et al. 2020) in the notation and with the scales of timm's recipe."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from convit_jax.data.images import image_operations as ops
from convit_jax.errors import InputError

# Magnitudes are levels from 0 to this.
MAX_LEVEL = 10.0

Operation = Callable[[np.ndarray, float, bool], np.ndarray]


def _signed(scale: float, operation: Callable[[np.ndarray, float], np.ndarray]) -> Operation:
    """Amount 0 at level 0 to `scale` at the highest, of either sign."""

    def apply(image: np.ndarray, level: float, negative: bool) -> np.ndarray:
        amount = level / MAX_LEVEL * scale
        return operation(image, -amount if negative else amount)

    return apply


def _enhance_increasing(operation: Callable[[np.ndarray, float], np.ndarray]) -> Operation:
    """Factor 1 (the image itself) at level 0 to 1 ± 0.9 at the highest."""

    def apply(image: np.ndarray, level: float, negative: bool) -> np.ndarray:
        change = level / MAX_LEVEL * 0.9
        return operation(image, max(0.1, 1.0 - change if negative else 1.0 + change))

    return apply


def _enhance(operation: Callable[[np.ndarray, float], np.ndarray]) -> Operation:
    """Factor 0.1 at level 0 to 1.9 at the highest; the image itself is in the middle."""
    return lambda image, level, _: operation(image, level / MAX_LEVEL * 1.8 + 0.1)


_COMMON: dict[str, Operation] = {
    "AutoContrast": lambda image, *_: ops.auto_contrast(image),
    "Equalize": lambda image, *_: ops.equalize(image),
    "Invert": lambda image, *_: ops.invert(image),
    "Rotate": _signed(30.0, ops.rotate),
    "SolarizeAdd": lambda image, level, _: ops.solarize_add(image, int(level / MAX_LEVEL * 110)),
    "ShearX": _signed(0.3, ops.shear_x),
    "ShearY": _signed(0.3, ops.shear_y),
    "TranslateXRel": _signed(0.45, ops.translate_x),
    "TranslateYRel": _signed(0.45, ops.translate_y),
}
INCREASING: dict[str, Operation] = _COMMON | {
    "PosterizeIncreasing": lambda image, level, _: ops.posterize(
        image, 4 - int(level / MAX_LEVEL * 4)
    ),
    "SolarizeIncreasing": lambda image, level, _: ops.solarize(
        image, 256 - int(level / MAX_LEVEL * 256)
    ),
    "ColorIncreasing": _enhance_increasing(ops.colour),
    "ContrastIncreasing": _enhance_increasing(ops.contrast),
    "BrightnessIncreasing": _enhance_increasing(ops.brightness),
    "SharpnessIncreasing": _enhance_increasing(ops.sharpness),
}
PLAIN: dict[str, Operation] = _COMMON | {
    "Posterize": lambda image, level, _: ops.posterize(image, int(level / MAX_LEVEL * 4)),
    "Solarize": lambda image, level, _: ops.solarize(image, int(level / MAX_LEVEL * 256)),
    "Color": _enhance(ops.colour),
    "Contrast": _enhance(ops.contrast),
    "Brightness": _enhance(ops.brightness),
    "Sharpness": _enhance(ops.sharpness),
}


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """`num_ops` random operations in sequence, each at a random magnitude.

    Attributes:
        magnitude: level of the operations, 0 to 10.
        num_ops: number of operations per image.
        prob: probability that an operation is applied.
        magnitude_std: standard deviation of the level; infinite for uniform in [0, magnitude].
        max_magnitude: upper limit of the level.
        increasing: use operations whose effect increases with the level (timm's `inc1`).
    """

    magnitude: float = 9.0
    num_ops: int = 2
    prob: float = 0.5
    magnitude_std: float = 0.0
    max_magnitude: float = MAX_LEVEL
    increasing: bool = False

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """uint8 [H, W, 3] → the same shape."""
        operations = _operations(self.increasing)
        for choice in rng.integers(len(operations), size=self.num_ops):
            applied, negative = rng.random(2) < (self.prob, 0.5)
            level = self._level(rng)
            if applied:
                image = operations[choice](image, level, negative)
        return image

    def _level(self, rng: np.random.Generator) -> float:
        level = self.magnitude
        if math.isinf(self.magnitude_std):
            level = rng.uniform(0.0, level)
        elif self.magnitude_std > 0:
            level = rng.normal(level, self.magnitude_std)
        return min(max(level, 0.0), self.max_magnitude)


@functools.cache
def _operations(increasing: bool) -> tuple[Operation, ...]:
    return tuple((INCREASING if increasing else PLAIN).values())


_FIELDS = {
    "m": "magnitude",
    "n": "num_ops",
    "p": "prob",
    "mstd": "magnitude_std",
    "mmax": "max_magnitude",
    "inc": "increasing",
}


def parse_randaugment(policy: str) -> RandAugment:
    """Parse timm's notation, e.g. `rand-m9-mstd0.5-inc1`.

    m: magnitude, n: number of operations, p: probability of each, mstd: standard deviation of the
    magnitude (100 or more: uniform), mmax: largest magnitude, inc: 1 for increasing operations.

    Raises:
        InputError: the policy is not RandAugment, or a part is unknown or out of range.
    """
    kind, *parts = policy.split("-")
    where = f"config.augment.randaugment='{policy}'"
    if kind != "rand":
        raise InputError(f"{where}: expected a policy like 'rand-m9-mstd0.5-inc1', or ''")
    fields: dict[str, Any] = {}
    for part in parts:
        match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?|inf)", part)
        if not match or match[1] not in _FIELDS:
            raise InputError(
                f"{where}: '{part}' is none of {', '.join(_FIELDS)} followed by a number"
            )
        fields[_FIELDS[match[1]]] = float(match[2])
    parsed = RandAugment(**fields)
    parsed = dataclasses.replace(
        parsed,
        num_ops=int(parsed.num_ops),
        increasing=bool(parsed.increasing),
        magnitude_std=math.inf if parsed.magnitude_std >= 100 else parsed.magnitude_std,
    )
    # The notation has no negative numbers.
    for valid, expected in (
        (parsed.magnitude <= MAX_LEVEL, "m from 0 to 10"),
        (parsed.num_ops >= 1, "n of at least 1"),
        (parsed.prob <= 1, "p from 0 to 1"),
        (parsed.max_magnitude <= MAX_LEVEL, "mmax from 0 to 10"),
    ):
        if not valid:
            raise InputError(f"{where}: expected {expected}")
    return parsed
