"""What a compiled TPU program says of its cost: cycles and collectives, from its text."""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping

_COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
_BYTES = {"f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2,
          "s16": 2, "u16": 2, "s8": 1, "u8": 1, "pred": 1}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ProgramCost:
    """Of one run of a program on one chip.

    Attributes:
        cycles: what the compiler estimates for its instructions, one after another, and the
            schedules of custom kernels where they are known; loops as often as they go round, where
            that can be told.
        custom_calls: how many custom kernels run.
        custom_cycles: what they have of the cycles.
        unknown_calls: how many of them have none, their schedules being unknown.
        collectives: (kind, how many, bytes of their results).
    """

    cycles: int
    custom_calls: int
    custom_cycles: int
    unknown_calls: int
    collectives: tuple[tuple[str, int, int], ...]


def read_cost(text: str, schedules: Mapping[str, int] | None = None) -> ProgramCost:
    """The cost of a program, from the text of its optimised HLO.

    Args:
        text: the HLO.
        schedules: cycles of custom kernels, by the names of their instructions; of kernels that are
            alike one need be there.

    Raises:
        ValueError: there is no entry computation in it.
    """
    computations = _computations(text)
    entry = next((name for name in computations if name.startswith("ENTRY")), None)
    if entry is None:
        raise ValueError("no ENTRY computation in the program's text")
    total = _cost_of(entry, computations, _custom_cycles(text, schedules or {}))
    collectives = tuple(
        (kind, total[f"number {kind}"], total[f"bytes {kind}"])
        for kind in _COLLECTIVES
        if total[f"number {kind}"]
    )
    return ProgramCost(
        cycles=total["cycles"],
        custom_calls=total["kernels"],
        custom_cycles=total["kernel cycles"],
        unknown_calls=total["unknown kernels"],
        collectives=collectives,
    )


_CUSTOM = re.compile(r'%(\S+) = .*custom_call_target="tpu_custom_call"')


def _custom_cycles(text: str, schedules: Mapping[str, int]) -> dict[str, int]:
    """Cycles of every custom kernel that is known, or that has the very program of one that is."""
    programs = {
        match[1]: program[1] if (program := re.search(r'"body":"([^"]*)"', line)) else match[1]
        for line in text.splitlines()
        if (match := _CUSTOM.search(line))
    }
    known = {programs[name]: cycles for name, cycles in schedules.items() if name in programs}
    return {name: known[body] for name, body in programs.items() if body in known}


def _computations(text: str) -> dict[str, list[str]]:
    """Lines of instructions by the name of their computation."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if line and not line[0].isspace() and line.rstrip().endswith("{"):
            words = line.split()
            name = f"ENTRY {words[1]}" if words[0] == "ENTRY" else words[0]
            lines = found.setdefault(name, [])
        elif line[:1].isspace():
            lines.append(line)
    return found


def _cost_of(
    name: str, computations: dict[str, list[str]], custom: Mapping[str, int]
) -> collections.Counter[str]:
    """Cycles, custom kernels and collectives of a computation and of what it calls."""
    cost: collections.Counter[str] = collections.Counter()
    for line in computations.get(name, ()):
        own = re.search(r'"estimated_cycles":"(\d+)"', line)
        cost["cycles"] += int(own[1]) if own else 0
        kernel = _CUSTOM.search(line)
        if kernel:
            cost["kernels"] += 1
            cost["kernel cycles"] += custom.get(kernel[1], 0)
            cost["cycles"] += custom.get(kernel[1], 0)
            cost["unknown kernels"] += kernel[1] not in custom
        moved = re.search(rf"= (.*?) ({'|'.join(_COLLECTIVES)})(-start)?\(", line)
        if moved:
            cost[f"number {moved[2]}"] += 1
            cost[f"bytes {moved[2]}"] += _bytes_in(moved[1], started=bool(moved[3]))
        loop = re.search(r"\bwhile\(.*body=(%[\w.-]+)", line)
        if loop:
            inside, trips = _cost_of(loop[1], computations, custom), _trips(line, computations)
            cost.update({what: trips * n for what, n in inside.items()})
        called = re.search(r"\bcall\(.*to_apply=(%[\w.-]+)", line)
        if called:
            cost.update(_cost_of(called[1], computations, custom))
        branches = re.search(r"\bconditional\(.*branch_computations=\{([^}]*)\}", line)
        if branches:
            costs = [_cost_of(one.strip(), computations, custom) for one in branches[1].split(",")]
            cost.update(max(costs, key=lambda one: one["cycles"]))
    return cost


def _trips(line: str, computations: dict[str, list[str]]) -> int:
    """How often a loop goes round: as said, or as its condition counts, from 0 as JAX's loops do.

    Once where it goes on until something happens, as in drawing from a distribution.
    """
    said = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
    if said:
        return int(said[1])
    name = re.search(r"condition=(%[\w.-]+)", line)
    condition = "\n".join(computations.get(name[1], ())) if name else ""
    last = re.search(r"ROOT %\S+ = pred\[\].* compare\(%\S+, (%[\w.-]+)\), direction=LT", condition)
    count = last and re.search(rf"{re.escape(last[1])} = s32\[\]\S* constant\((\d+)\)", condition)
    return int(count[1]) if count else 1


def _bytes_in(shapes: str, *, started: bool) -> int:
    """Bytes of the arrays of a result's type; a started operation lists its operands as well."""
    total = sum(
        _BYTES.get(kind, 0) * math.prod(int(size) for size in sizes.split(",") if size)
        for kind, sizes in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shapes)
    )
    return total // 2 if started else total
