"""Comparison of lists of class names."""

import unicodedata
from collections.abc import Sequence

from convit_jax.errors import some

# Lists of at most this many classes are written out in full.
_SHORT_LIST = 12


def normal_form(name: str) -> str:
    """Return a name in Unicode's composed form (NFC), in which "é" is a single code point."""
    return unicodedata.normalize("NFC", name)


def normal_forms(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names in composed form (NFC), in the same order."""
    return tuple(map(normal_form, names))


def describe_difference(before: Sequence[str], now: Sequence[str]) -> str | None:
    """Describe how two lists of class names differ, e.g. `trained on a, b; now a, b, c`.

    Short lists are written out in full; of long ones, only the differences are.

    Args:
        before: the class names of a trained model.
        now: the class names of the current data.

    Returns:
        The description, or None if the classes are the same in the same order.
    """
    before, now = normal_forms(before), normal_forms(now)
    if before == now:
        return None
    if max(len(before), len(now)) <= _SHORT_LIST:
        return f"trained on {', '.join(before)}; now {', '.join(now)}"
    parts = []
    before_set, now_set = set(before), set(now)
    if added := [name for name in now if name not in before_set]:
        parts.append(f"new: {some(added)}")
    if removed := [name for name in before if name not in now_set]:
        parts.append(f"gone: {some(removed)}")
    if not parts:
        label = next(i for i, (x, y) in enumerate(zip(before, now, strict=True)) if x != y)
        parts.append(f"in another order: label {label} was {before[label]}, is {now[label]}")
    return f"trained on {len(before):,} classes; now {len(now):,}, {'; '.join(parts)}"
