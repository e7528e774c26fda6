"""Class names: whether two lists of them are the same, and how they differ in words."""

import unicodedata
from collections.abc import Sequence

from convit_jax.errors import some

_FEW = 12


def normal_form(name: str) -> str:
    """A name in Unicode's composed form: "é" is one letter, and not "e" with an accent."""
    return unicodedata.normalize("NFC", name)


def normal_forms(names: Sequence[str]) -> tuple[str, ...]:
    """Names in composed form, in their order."""
    return tuple(map(normal_form, names))


def describe_difference(before: Sequence[str], now: Sequence[str]) -> str | None:
    """How two lists of class names differ: `trained on a, b; now a, b, c`.

    Short lists are written out, of long ones only what differs.

    Args:
        before, now: the two.

    Returns:
        The difference in words, or None where the classes are the same in the same order.
    """
    before, now = normal_forms(before), normal_forms(now)
    if before == now:
        return None
    if max(len(before), len(now)) <= _FEW:
        return f"trained on {', '.join(before)}; now {', '.join(now)}"
    parts = []
    known, there = set(before), set(now)
    if added := [name for name in now if name not in known]:
        parts.append(f"new: {some(added)}")
    if gone := [name for name in before if name not in there]:
        parts.append(f"gone: {some(gone)}")
    if not parts:
        label = next(i for i, (x, y) in enumerate(zip(before, now, strict=True)) if x != y)
        parts.append(f"in another order: label {label} was {before[label]}, is {now[label]}")
    return f"trained on {len(before):,} classes; now {len(now):,}, {'; '.join(parts)}"
