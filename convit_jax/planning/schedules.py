"""Cycles of custom kernels, from the schedules that the TPU compiler dumps.

The compiler's cycle estimates leave custom kernels out. But libtpu, if configured before it is
loaded, dumps the instruction bundles of everything that it compiles. A bundle takes one cycle, so a
kernel's cycles are its bundles, each multiplied by the trip counts of the loops around it. Waiting
for memory is not included.
"""

import functools
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

# A line of a schedule: address, optional label, one ">" for each enclosing loop, instructions.
_BUNDLE = re.compile(
    r"\s*(?:0x[0-9a-f]+|\d+)\s+(?P<label>[A-Z]{2})?\s*: (?P<loops>[> ]*)\{(?P<instructions>.*)"
)
_EXIT = re.compile(r"scmp\.ge\.s32\.totalorder %\w+, (\d+) /\* loop exit test")
# The loop over a grid of n steps loads in its iterations [0, n), computes in [1, n + 1) and stores
# in [2, n + 2). These tests of its index are the bounds of the three windows.
_FROM = re.compile(r"scmp\.ge\.s32\.totalorder (%\w+), ([12])\b")
_BELOW = re.compile(r"scmp\.lt\.s32\.totalorder (%\w+), (\d+)")


class _Bundle(NamedTuple):
    """One line of a schedule: its number of enclosing loops, whether a loop starts here, code."""

    depth: int
    starts_loop: bool
    instructions: str


@functools.cache
def _dump_directory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="convit-jax-schedules-")


def enable_dumps() -> None:
    """Have libtpu dump schedules; call this before libtpu is loaded."""
    dump_flags = (
        f"--xla_jf_dump_to={_dump_directory().name} --xla_jf_dump_llo_text=true "
        "--xla_jf_dump_llo_pass_label_regex=final_bundles"
    )
    flags = os.environ.get("LIBTPU_INIT_ARGS", "")
    if "--xla_jf_dump_to" not in flags:
        os.environ["LIBTPU_INIT_ARGS"] = f"{flags} {dump_flags}".strip()


def clear() -> None:
    """Delete the schedules dumped so far."""
    for path in pathlib.Path(_dump_directory().name).iterdir():
        path.unlink()


def read_cycles() -> dict[str, int]:
    """Return cycles of the custom kernels compiled since `clear`, by instruction name in the HLO.

    Identical kernels are compiled once, under the name of one of them.
    """
    cycles = {}
    for path in pathlib.Path(_dump_directory().name).glob("*final_bundles.txt"):
        text = path.read_text()
        entry = re.search(r"entry bundle: %(\S+) = custom-call\(", text)
        if entry:
            cycles[entry[1]] = count_cycles(text)
    return cycles


def count_cycles(text: str) -> int:
    """Return a kernel's cycles from its final bundles, each as often as its loops run.

    Instructions that run in some iterations only are counted in all.

    Raises:
        ValueError: the text has no bundles.
    """
    bundles = list(_parse_bundles(text))
    if not bundles:
        raise ValueError("no bundles in the kernel's schedule")
    return _count_cycles(bundles, 0)


def _parse_bundles(text: str) -> Iterator[_Bundle]:
    depth = 0
    for line in text.splitlines():
        match = _BUNDLE.match(line)
        if match:
            # Empty bundles have no loop marks; they are in the same loop as the one before.
            empty = match["instructions"].lstrip().startswith("}")
            depth = depth if empty else match["loops"].count(">")
            yield _Bundle(depth, match["label"] == "LB", match["instructions"])


def _count_cycles(bundles: list[_Bundle], depth: int) -> int:
    """Return the cycles of bundles that are within `depth` loops."""
    total = index = 0
    while index < len(bundles):
        end = index
        while end < len(bundles) and bundles[end].depth > depth:
            end += 1
            if end < len(bundles) and bundles[end][:2] == (depth + 1, True):
                break
        if end == index:
            total, index = total + 1, index + 1
        else:
            loop = bundles[index:end]
            total += _trip_count(loop, depth + 1) * _count_cycles(loop, depth + 1)
            index = end
    return total


def _trip_count(loop: list[_Bundle], depth: int) -> int:
    """Return how often the body of a loop at `depth` runs; that of the grid: its steps."""
    text = "\n".join(bundle.instructions for bundle in loop if bundle.depth == depth)
    if depth == 1:
        indices = {name for name, _ in _FROM.findall(text)}
        ends = [int(end) for name, end in _BELOW.findall(text) if name in indices]
        if ends:
            return max(ends) - 1  # the end of the window in which it computes
    exits = _EXIT.search(text)
    return int(exits[1]) if exits else 1
