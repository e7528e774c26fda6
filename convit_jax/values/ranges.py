"""What a value may be, besides its type: a range that stands with the key it is for."""

import dataclasses
import math
from typing import Any

from convit_jax.errors import InputError
from convit_jax.values.durations import parse_duration


@dataclasses.dataclass(frozen=True)
class Range:
    """What a number, a text or each element of a tuple may be; NaN and infinity never are.

    Attributes:
        above, at_least, below, at_most: bounds of a number, or of a duration's.
        one_of: the texts that are allowed.
        also: values outside the bounds that are allowed as well (-1 for "one for each core").
        duration: the text is a duration, "300 epochs" or "1500 steps".
        lengths: how many elements a tuple has; () for any number.
        ascending: a tuple's elements do not get smaller: (smallest, largest).
    """

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    one_of: tuple[str, ...] = ()
    also: tuple[Any, ...] = ()
    duration: bool = False
    lengths: tuple[int, ...] = ()
    ascending: bool = False

    def holds(self, value: Any) -> bool:
        """Whether a value is allowed; None, where it stands for "not set", always is."""
        if value is None:
            return True
        if isinstance(value, tuple):
            right_length = not self.lengths or len(value) in self.lengths
            return right_length and all(map(self.holds, value)) and self._in_order(value)
        if self.duration:
            parsed = parse_duration(value)
            return parsed is not None and self._within(parsed[0])
        if isinstance(value, str):
            return not self.one_of or value in self.one_of
        if isinstance(value, bool):
            return True
        return value in self.also or self._within(value)

    def check(self, value: Any, name: str) -> None:
        """Raises InputError, naming what the value is for, where it is not allowed."""
        if not self.holds(value):
            finite = not isinstance(value, float) or math.isfinite(value)
            expected = self if finite else f"a finite number, {_bounds(self)}".removesuffix(", ")
            raise InputError(f"{name}={value!r}: expected {expected}")

    def __bool__(self) -> bool:
        return self != Range()

    def __str__(self) -> str:
        """The range in words: `above 0, up to 1`, `'step' or 'epoch'`."""
        if self.one_of:
            return " or ".join(map(repr, self.one_of))
        words = _bounds(self)
        if self.duration:
            form = "'<number> steps' (a whole one) or '<number> epochs'"
            return f"{form}, {words}" if words else form
        if self.also:
            words += f", or {' or '.join(map(str, self.also))}"
        if self.ascending:
            words = f"(smallest, largest), each {words}"
        elif self.lengths:
            words = f"{' or '.join(map(str, self.lengths))} numbers, each {words}"
        return words or "a finite number"

    def _within(self, number: float) -> bool:
        return (
            math.isfinite(number)
            and (self.above is None or number > self.above)
            and (self.at_least is None or number >= self.at_least)
            and (self.below is None or number < self.below)
            and (self.at_most is None or number <= self.at_most)
        )

    def _in_order(self, values: tuple[Any, ...]) -> bool:
        return not self.ascending or list(values) == sorted(values)


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
    """When a key is read at all: one of some other keys has a value in a range.

    Attributes:
        keys: dotted names of the other keys.
        within: the range.
    """

    keys: tuple[str, ...]
    within: Range

    def __str__(self) -> str:
        """The condition in words: `augment.crop is 'pad'`, `data.fraction is below 1`."""
        return f"{' or '.join(self.keys)} is {self.within}"


def when(*keys: str, **bounds: Any) -> When:
    """The condition that one of some keys has a value in a range (the arguments of `Range`)."""
    return When(keys, Range(**bounds))
