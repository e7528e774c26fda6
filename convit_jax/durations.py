"""Durations as text: "1500 steps" or "0.5 epochs", so that each is given in exactly one unit."""

import re

from convit_jax.errors import InputError

_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(steps?|epochs?)\s*")


def in_steps(duration: str, name: str, steps_per_epoch: float) -> int:
    """A duration in steps: "1500 steps" as it is, "0.5 epochs" by the length of an epoch.

    Args:
        duration: the text.
        name: what it is called, for messages.
        steps_per_epoch: the length of an epoch.

    Raises:
        InputError: it is neither of the two, or a broken number of steps.
    """
    match = _DURATION.fullmatch(duration)
    if not match:
        raise InputError(f"{name}='{duration}': expected '<number> steps' or '<number> epochs'")
    number, unit = float(match[1]), match[2]
    if unit.startswith("epoch"):
        return round(number * steps_per_epoch)
    if not number.is_integer():
        raise InputError(f"{name}='{duration}': expected a whole number of steps")
    return int(number)
