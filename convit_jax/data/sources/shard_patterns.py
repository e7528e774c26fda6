"""Names of many files in one: `x-{0000..1023}.tar`, `{a,b}.tar` and `x-*.tar`."""

import difflib
import glob
import itertools
import math
import re
from collections.abc import Sequence

from etils import epath

from convit_jax.errors import InputError, boundary

_MAX_SHARDS = 100_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})")


def expand_braces(pattern: str) -> list[str]:
    """Expand `{0000..1023}` and `{a,b}`, any number of them, in order; the last varies fastest.

    Numbers have the width of the range's bounds if one of these begins with a zero, as in a shell.

    Raises:
        InputError: braces are not paired or hold something else, or there are too many files.
    """
    if any(brace in _BRACES.sub("", pattern) for brace in "{}"):
        raise InputError("its braces are not paired, or nested: expected {0000..1023} or {a,b}")
    # Every other part is the content of braces.
    parts = [
        _choices(part) if number % 2 else [part]
        for number, part in enumerate(_BRACES.split(pattern))
    ]
    total = math.prod(map(len, parts))
    if total > _MAX_SHARDS:
        raise InputError(f"it names {total:,} files, expected at most {_MAX_SHARDS:,}")
    return ["".join(choice) for choice in itertools.product(*parts)]


def _choices(content: str) -> Sequence[str]:
    bounds = _RANGE.fullmatch(content)
    if bounds is None:
        if "," not in content:
            raise InputError(f"{{{content}}}: expected a range {{0000..1023}} or a list {{a,b}}")
        return content.split(",")
    first, last = map(int, bounds.groups())
    if last < first:
        raise InputError(f"{{{content}}}: expected the smaller number first")
    if last - first >= _MAX_SHARDS:
        raise InputError(
            f"{{{content}}} names {last - first + 1:,} files, expected at most {_MAX_SHARDS:,}"
        )
    has_zeros = any(len(bound) > 1 and bound[0] == "0" for bound in bounds.groups())
    width = max(map(len, bounds.groups())) if has_zeros else 0
    return [f"{number:0{width}}" for number in range(first, last + 1)]


def matching_files(paths: Sequence[str]) -> list[str]:
    """Replace each path with `*`, `?` or `[` by the sorted paths that match it.

    A path that exists as it is written stays. A file is named once, where it comes first.
    """
    files: dict[str, None] = {}
    for path in paths:
        if glob.has_magic(path) and not epath.Path(path).exists():
            directory, pattern = _split_at_magic(path)
            files |= dict.fromkeys(sorted(map(str, directory.glob(pattern))))
        else:
            files[path] = None
    return list(files)


def _split_at_magic(path: str) -> tuple[epath.Path, str]:
    """Return the deepest directory before the first magic character, and the rest of the path."""
    parts = path.split("/")
    number = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    directory = "/".join(parts[:number]) or ("/" if number else ".")
    return epath.Path(directory), "/".join(parts[number:])


def nearest_pattern(path: str, suffix: str) -> str:
    """Describe what a directory holds instead of the files that a pattern was to match.

    Args:
        path: a path or pattern without a match.
        suffix: of the files that are expected.

    Returns:
        "did you mean 'DIRECTORY/x-{0000..0063}.tar'?", or what else is there.

    Raises:
        MachineError: the directory cannot be listed.
    """
    directory = epath.Path(path)
    if not directory.is_dir():
        directory = directory.parent
    if glob.has_magic(str(directory)) or not directory.is_dir():
        return f"there is no directory '{directory}'"
    with boundary(str(directory), "cannot be listed"):
        names = sorted(entry.name for entry in directory.iterdir() if entry.name.endswith(suffix))
    if not names:
        return f"'{directory}' has no {suffix} files"
    patterns = _patterns(names)
    # Numbers and wildcards say little about which is meant.
    by_letters = {_without_numbers(pattern): pattern for pattern in reversed(patterns)}
    name = _without_numbers(epath.Path(path).name)
    best = difflib.get_close_matches(name, by_letters, n=1, cutoff=0)[0]
    return f"did you mean '{directory / by_letters[best]}'?"


def _without_numbers(name: str) -> str:
    return re.sub(r"[\d{}.,*?\[\]]+", "", name)


def _patterns(names: Sequence[str]) -> list[str]:
    """Return the names, with those that differ in their last number only as one range."""
    numbers: dict[tuple[str, str], list[str]] = {}
    patterns = []
    for name in names:
        match = re.fullmatch(r"(.*?)(\d+)(\D*)", name)
        if match:
            numbers.setdefault((match[1], match[3]), []).append(match[2])
        else:
            patterns.append(name)
    for (before, after), shards in numbers.items():
        first, last = min(shards, key=int), max(shards, key=int)
        patterns.append(f"{before}{first if first == last else f'{{{first}..{last}}}'}{after}")
    return patterns
