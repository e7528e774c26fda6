"""What custom kernels cost, from the schedules that the TPU compiler writes of them.

The cycles that the compiler estimates for a program leave custom kernels out. But its library, told
so before it is loaded, writes down the instruction bundles of everything that it compiles. A bundle
takes a cycle, so that a kernel takes its bundles as often as the loops around them go round, waits
for memory left out.
"""

import functools
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator

# One of a kernel's lines: address, perhaps a label, one ">" for each loop it is in, instructions.
_BUNDLE = re.compile(
    r"\s*(?:0x[0-9a-f]+|\d+)\s+(?P<label>[A-Z]{2})?\s*: (?P<loops>[> ]*)\{(?P<does>.*)"
)
_EXIT = re.compile(r"scmp\.ge\.s32\.totalorder %\w+, (\d+) /\* loop exit test")
# A grid's loop starts loading before and stores after: the steps between are within these bounds.
_FIRST = re.compile(r"scmp\.ge\.s32\.totalorder (%\w+), (\d+)")
_LAST = re.compile(r"scmp\.lt\.s32\.totalorder (%\w+), (\d+)")


@functools.cache
def _directory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="convit-jax-schedules-")


def record() -> None:
    """Has schedules written from now on; must come before the compiler's library is loaded."""
    written = (
        f"--xla_jf_dump_to={_directory().name} --xla_jf_dump_llo_text=true "
        "--xla_jf_dump_llo_pass_label_regex=final_bundles"
    )
    known = os.environ.get("LIBTPU_INIT_ARGS", "")
    if "--xla_jf_dump_to" not in known:
        os.environ["LIBTPU_INIT_ARGS"] = f"{known} {written}".strip()


def clear() -> None:
    """Forgets the schedules written so far."""
    for path in pathlib.Path(_directory().name).iterdir():
        path.unlink()


def recorded() -> dict[str, int]:
    """Cycles of the custom kernels compiled since `clear`, by the instruction's name in the HLO.

    Kernels that are alike are compiled once, under the name of one of them.
    """
    found = {}
    for path in pathlib.Path(_directory().name).glob("*final_bundles.txt"):
        text = path.read_text()
        entry = re.search(r"entry bundle: %(\S+) = custom-call\(", text)
        if entry:
            found[entry[1]] = cycles_of(text)
    return found


def cycles_of(text: str) -> int:
    """Cycles of a kernel, from its final bundles: each as often as the loops around it go round.

    What is done in some rounds only is counted in all.

    Raises:
        ValueError: there are no bundles in the text.
    """
    bundles = list(_bundles(text))
    if not bundles:
        raise ValueError("no bundles in the kernel's schedule")
    return _cycles(bundles, 0)


def _bundles(text: str) -> Iterator[tuple[int, bool, str]]:
    """(loops around it, whether it begins a loop, instructions) of each bundle."""
    depth = 0
    for line in text.splitlines():
        match = _BUNDLE.match(line)
        if match:
            # Empty bundles are not marked; they stand where the one before does.
            empty = match["does"].lstrip().startswith("}")
            depth = depth if empty else match["loops"].count(">")
            yield depth, match["label"] == "LB", match["does"]


def _cycles(bundles: list[tuple[int, bool, str]], depth: int) -> int:
    """Cycles of bundles within `depth` loops."""
    total = index = 0
    while index < len(bundles):
        inside = index
        while inside < len(bundles) and bundles[inside][0] > depth:
            inside += 1
            if inside < len(bundles) and bundles[inside][:2] == (depth + 1, True):
                break
        if inside == index:
            total, index = total + 1, index + 1
        else:
            loop = bundles[index:inside]
            total += _trips(loop, depth + 1) * _cycles(loop, depth + 1)
            index = inside
    return total


def _trips(loop: list[tuple[int, bool, str]], depth: int) -> int:
    """How often a loop's body runs."""
    text = "\n".join(does for own, _, does in loop if own == depth)
    firsts = dict(reversed(_FIRST.findall(text)))
    for name, last in _LAST.findall(text):
        if depth == 1 and int(last) > int(firsts.get(name, last)):
            return int(last) - int(firsts[name])
    exits = _EXIT.search(text)
    return int(exits[1]) if exits else 1
