"""Ranges: which values of its type a configuration key allows, and when a key is read."""

import dataclasses
import math
from typing import Any

from convit_jax.errors import InputError
from convit_jax.values.durations import parse_duration


@dataclasses.dataclass(frozen=True)
class Range:
    """The allowed values of a number, a text or each element of a tuple; never NaN or infinity.

    Attributes:
        above, at_least, below, at_most: bounds of a number, or of the number in a duration.
        one_of: the allowed texts.
        named: the text must not be empty: '' stands for "none".
        also: allowed values outside the bounds (-1 for "one for each core").
        duration: the text is a duration, "300 epochs" or "1500 steps".
        lengths: allowed numbers of elements of a tuple; () for any.
        ascending: the elements of a tuple must not decrease: (smallest, largest).
    """

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    one_of: tuple[str, ...] = ()
    named: bool = False
    also: tuple[Any, ...] = ()
    duration: bool = False
    lengths: tuple[int, ...] = ()
    ascending: bool = False

    def holds(self, value: Any) -> bool:
        """Return whether a value is allowed; None, which stands for "not set", always is."""
        if value is None:
            return True
        if isinstance(value, tuple):
            right_length = not self.lengths or len(value) in self.lengths
            in_order = not self.ascending or list(value) == sorted(value)
            return right_length and all(map(self.holds, value)) and in_order
        if self.duration:
            parsed = parse_duration(value)
            return parsed is not None and self._within(parsed[0])
        if isinstance(value, str):
            return (not self.one_of or value in self.one_of) and (value != "" or not self.named)
        if isinstance(value, bool):
            return True
        return value in self.also or self._within(value)

    def check(self, value: Any, name: str) -> None:
        """Raise InputError, with the key's name, unless the value is allowed."""
        if not self.holds(value):
            finite = not isinstance(value, float) or math.isfinite(value)
            expected = self if finite else f"a finite number, {_bounds(self)}".removesuffix(", ")
            raise InputError(f"{name}={value!r}: expected {expected}")

    def __bool__(self) -> bool:
        return self != Range()

    def __str__(self) -> str:
        """Describe the range: `above 0, up to 1`, `'step' or 'epoch'`."""
        if self.one_of:
            return " or ".join(map(repr, self.one_of))
        if self.named:
            return "a name"
        text = _bounds(self)
        if self.duration:
            form = "'<number> steps' (a whole one) or '<number> epochs'"
            return f"{form}, {text}" if text else form
        if self.also:
            text += f", or {' or '.join(map(str, self.also))}"
        if self.ascending:
            text = f"(smallest, largest), each {text}"
        elif self.lengths:
            text = f"{' or '.join(map(str, self.lengths))} numbers, each {text}"
        return text or "a finite number"

    def _within(self, number: float) -> bool:
        return (
            math.isfinite(number)
            and (self.above is None or number > self.above)
            and (self.at_least is None or number >= self.at_least)
            and (self.below is None or number < self.below)
            and (self.at_most is None or number <= self.at_most)
        )


def _bounds(span: Range) -> str:
    low = f"above {span.above:g}" if span.above is not None else None
    low = f"at least {span.at_least:g}" if span.at_least is not None else low
    high = f"below {span.below:.12g}" if span.below is not None else None
    high = f"up to {span.at_most:.12g}" if span.at_most is not None else high
    if span.at_least is not None and span.at_most is not None:
        return f"{span.at_least:g} to {span.at_most:.12g}"
    return ", ".join(filter(None, (low, high)))


@dataclasses.dataclass(frozen=True)
class When:
    """A condition for a key to be read: the value of one of some other keys is in a range.

    Attributes:
        keys: dotted names of the other keys.
        within: the range.
    """

    keys: tuple[str, ...]
    within: Range

    def __str__(self) -> str:
        """Describe the condition: `augment.crop is 'pad'`, `data.fraction is below 1`."""
        return f"{' or '.join(self.keys)} is {self.within}"


def when(*keys: str, **bounds: Any) -> When:
    """Return the condition that one of some keys is in a range (the arguments of `Range`)."""
    return When(keys, Range(**bounds))
