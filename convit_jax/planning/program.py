"""Cost of a compiled TPU program: cycles and collectives, parsed from its HLO text."""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping

_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_ITEM_SIZES = {"f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2,
               "s16": 2, "u16": 2, "s8": 1, "u8": 1, "pred": 1}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ProgramCost:
    """Cost of one execution of a program on one chip.

    Attributes:
        cycles: the compiler's estimates for all instructions, one after another, plus the schedules
            of custom kernels where they are known; loops are multiplied by their trip counts where
            these can be inferred.
        custom_calls: number of calls of custom kernels.
        custom_cycles: the part of `cycles` that is in custom kernels.
        unknown_calls: number of the calls whose schedule is unknown and not in `cycles`.
        collectives: (kind, number of calls, bytes of their results).
    """

    cycles: int
    custom_calls: int
    custom_cycles: int
    unknown_calls: int
    collectives: tuple[tuple[str, int, int], ...]


def read_cost(text: str, schedules: Mapping[str, int] | None = None) -> ProgramCost:
    """Return the cost of a program from the text of its optimised HLO.

    Args:
        text: the HLO.
        schedules: cycles of custom kernels by instruction name; of identical kernels, one entry is
            enough.

    Raises:
        ValueError: the text has no entry computation.
    """
    computations = _parse_computations(text)
    entry = next((name for name in computations if name.startswith("ENTRY")), None)
    if entry is None:
        raise ValueError("no ENTRY computation in the program's text")
    total = _computation_cost(entry, computations, _kernel_cycles(text, schedules or {}))
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


_CUSTOM_CALL = re.compile(r'%(\S+) = .*custom_call_target="tpu_custom_call"')


def _kernel_cycles(text: str, schedules: Mapping[str, int]) -> dict[str, int]:
    """Return the cycles of each custom kernel that has a schedule or is identical to one that has.

    Kernels are identical if their bodies are.
    """
    bodies = {
        match[1]: body[1] if (body := re.search(r'"body":"([^"]*)"', line)) else match[1]
        for line in text.splitlines()
        if (match := _CUSTOM_CALL.search(line))
    }
    cycles_of_body = {bodies[name]: cycles for name, cycles in schedules.items() if name in bodies}
    return {name: cycles_of_body[body] for name, body in bodies.items() if body in cycles_of_body}


def _parse_computations(text: str) -> dict[str, list[str]]:
    """Return the lines of each computation by its name; the entry's name starts with "ENTRY"."""
    computations: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if line and not line[0].isspace() and line.rstrip().endswith("{"):
            tokens = line.split()
            name = f"ENTRY {tokens[1]}" if tokens[0] == "ENTRY" else tokens[0]
            lines = computations.setdefault(name, [])
        elif line[:1].isspace():
            lines.append(line)
    return computations


def _computation_cost(
    name: str, computations: dict[str, list[str]], kernel_cycles: Mapping[str, int]
) -> collections.Counter[str]:
    """Return cycles, custom kernels and collectives of a computation and of those it calls."""
    cost: collections.Counter[str] = collections.Counter()
    for line in computations.get(name, ()):
        estimate = re.search(r'"estimated_cycles":"(\d+)"', line)
        cost["cycles"] += int(estimate[1]) if estimate else 0
        kernel = _CUSTOM_CALL.search(line)
        if kernel:
            cost["kernels"] += 1
            cost["kernel cycles"] += kernel_cycles.get(kernel[1], 0)
            cost["cycles"] += kernel_cycles.get(kernel[1], 0)
            cost["unknown kernels"] += kernel[1] not in kernel_cycles
        collective = re.search(rf"= (.*?) ({'|'.join(_COLLECTIVES)})(-start)?\(", line)
        if collective:
            shapes, kind, start = collective.groups()
            cost[f"number {kind}"] += 1
            cost[f"bytes {kind}"] += _num_bytes(shapes, with_operands=bool(start))
        loop = re.search(r"\bwhile\(.*body=(%[\w.-]+)", line)
        if loop:
            body = _computation_cost(loop[1], computations, kernel_cycles)
            trips = _trip_count(line, computations)
            cost.update({key: trips * value for key, value in body.items()})
        call = re.search(r"\bcall\(.*to_apply=(%[\w.-]+)", line)
        if call:
            cost.update(_computation_cost(call[1], computations, kernel_cycles))
        branches = re.search(r"\bconditional\(.*branch_computations=\{([^}]*)\}", line)
        if branches:
            branch_costs = (
                _computation_cost(branch.strip(), computations, kernel_cycles)
                for branch in branches[1].split(",")
            )
            cost.update(max(branch_costs, key=lambda branch: branch["cycles"]))
    return cost


def _trip_count(line: str, computations: dict[str, list[str]]) -> int:
    """Return how often a loop's body runs: as annotated, or inferred from its condition.

    The condition of JAX's counting loops compares a counter that starts at 0 with a constant. Other
    loops, as in rejection sampling, are counted once.
    """
    annotation = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
    if annotation:
        return int(annotation[1])
    name = re.search(r"condition=(%[\w.-]+)", line)
    condition = "\n".join(computations.get(name[1], ())) if name else ""
    compare = r"ROOT %\S+ = pred\[\].* compare\(%\S+, (%[\w.-]+)\), direction=LT"
    limit = re.search(compare, condition)
    constant = limit and re.search(
        rf"{re.escape(limit[1])} = s32\[\]\S* constant\((\d+)\)", condition
    )
    return int(constant[1]) if constant else 1


def _num_bytes(shapes: str, *, with_operands: bool) -> int:
    """Return the bytes of the arrays in a result's type.

    The type of an asynchronous start lists the operands as well (`with_operands`): half is counted.
    """
    total = sum(
        _ITEM_SIZES.get(dtype, 0) * math.prod(int(size) for size in sizes.split(",") if size)
        for dtype, sizes in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shapes)
    )
    return total // 2 if with_operands else total
