"""Durations as text, "1500 steps" or "0.5 epochs": each in exactly one unit."""

import re

from convit_jax.errors import InputError

_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(steps?|epochs?)\s*")


def parse_duration(duration: str) -> tuple[float, str] | None:
    """Parse a duration.

    Returns:
        Its number and its unit, `steps` or `epochs`; None if it is not a duration, or a fractional
        number of steps.
    """
    match = _DURATION.fullmatch(duration)
    if not match:
        return None
    number, unit = float(match[1]), match[2].rstrip("s") + "s"
    return None if unit == "steps" and not number.is_integer() else (number, unit)


def in_steps(duration: str, name: str, steps_per_epoch: float) -> int:
    """Convert a duration to steps.

    Args:
        duration: the text.
        name: the key's name, for messages.
        steps_per_epoch: the length of an epoch.

    Raises:
        InputError: it is not a duration, or a fractional number of steps.
    """
    parsed = parse_duration(duration)
    if parsed is None:
        raise InputError(
            f"{name}='{duration}': expected '<number> steps' (a whole one) or '<number> epochs'"
        )
    number, unit = parsed
    return round(number * steps_per_epoch) if unit == "epochs" else int(number)
