"""Plan a run on a TPU slice without having one:

    python -m convit_jax.plan --config configs/convit_b.py --topology v4:4x4x4
    python -m convit_jax.plan --config configs/convit_s.py --topology v5e-8 --sweep batch

The TPU compiler, which runs on any Linux (pip install libtpu), compiles train.py's train step for
the slice and estimates its memory and time. Nothing is run: steps take at least as long as
estimated. One compilation takes minutes.
"""

import os

# Shapes are computed on the CPU; a TPU of this machine is not used.
os.environ["JAX_PLATFORMS"] = "cpu"

import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Sequence

from convit_jax.config import Config
from convit_jax.console import command_line
from convit_jax.console.screen import print_table
from convit_jax.data.sources import imagenet
from convit_jax.errors import InputError
from convit_jax.planning import Plan, Topology, describe_topologies, find_topology, make_plan

# Images a chip of the largest batch that a sweep tries.
_MAX_BATCH_PER_CHIP = 2048
# A sweep finds the largest batch to within an eighth, since each try costs minutes.
_PRECISION = 8
_ESTIMATES = "the TPU compiler's, nothing was run"


def sweep(
    config: Config, topology: Topology, *, num_examples: int, num_classes: int
) -> Iterator[Plan]:
    """Yield plans that narrow down the largest batch that fits.

    The batch is doubled until it does not fit, or, if the config's does not fit, halved until it
    does; then bisected until the two differ by at most an eighth. See `describe_largest`.
    """
    unit = 2 * topology.chips * (config.optimizer.accumulate or 1)
    if config.augment.mix_group:
        unit = math.lcm(unit, config.augment.mix_group)

    def plan_for(size: int) -> Plan:
        resized = dataclasses.replace(config, batch_size=size, eval_batch_size=size)
        return make_plan(resized, topology, num_examples=num_examples, num_classes=num_classes)

    plan = make_plan(config, topology, num_examples=num_examples, num_classes=num_classes)
    yield plan
    grow, size = plan.fits, config.batch_size
    while plan.fits == grow:
        last, size = size, size * 2 if grow else size // 2 // unit * unit
        if size > _MAX_BATCH_PER_CHIP * topology.chips or not size:
            return
        plan = plan_for(size)
        yield plan
    fitting, too_large = (last, size) if grow else (size, last)
    while too_large - fitting > max(unit, fitting // _PRECISION):
        middle = (fitting + too_large) // 2 // unit * unit
        if middle == fitting:
            return
        plan = plan_for(middle)
        yield plan
        fitting, too_large = (middle, too_large) if plan.fits else (fitting, middle)


def describe_largest(plans: Sequence[Plan]) -> str:
    """Summarise a sweep in one or two sentences."""
    fitting = max((plan.batch_size for plan in plans if plan.fits), default=0)
    too_large = min((plan.batch_size for plan in plans if not plan.fits), default=0)
    if not fitting:
        return f"No batch fits: {too_large:,}, the smallest tried, does not."
    chips = plans[0].chips
    limit = f"{too_large:,} does not" if too_large else "larger ones were not tried"
    summary = f"The largest batch that fits: {fitting:,}, {fitting // chips:,} a chip ({limit})."
    # Where memory is nearly full the compiler recomputes what it could have kept.
    fastest = max(plans, key=lambda plan: plan.images_per_second)
    if fastest.batch_size == fitting:
        return summary
    speed = f"{fastest.images_per_second:,.0f}"
    return f"{summary} The fastest that was tried is {fastest.batch_size:,}: {speed} images/s."


def _rows(plan: Plan) -> list[tuple[str, str]]:
    """Return the rows of a plan's table."""
    gib = 2**30
    in_parts = f", in {plan.parts} parts" if plan.parts > 1 else ""
    rows = [
        ("slice", f"{plan.topology}: {plan.chips} chips, {plan.hosts} host(s)"),
        ("mesh", f"data={plan.mesh[0]} x fsdp={plan.mesh[1]}"),
        ("batch", f"{plan.batch_size:,}: {plan.batch_per_chip:,} a chip{in_parts}"),
        ("parameters", f"{plan.parameter_bytes / gib:.3f} GiB a chip"),
        ("optimizer state", f"{plan.optimizer_bytes / gib:.3f} GiB a chip"),
    ]
    if plan.teacher:
        size = (
            f"{plan.teacher_bytes / gib:.3f} GiB a chip" if plan.teacher_bytes else "in the program"
        )
        rows.append(("teacher", f"{size}: {plan.teacher}"))
    if not plan.fits:
        return [*rows, ("does not fit", plan.problem)]
    gflops = plan.teacher_gflops_per_image
    of_teacher = f"; {gflops:.2f} of them the teacher's" if plan.teacher else ""
    collectives = ", ".join(
        f"{count} {kind} of {size / 1e6:.1f} MB" for kind, count, size in plan.collectives
    )
    rows += [
        ("activations, temporaries", f"{plan.temporary_bytes / gib:.3f} GiB a chip"),
        ("batch, program", f"{plan.other_bytes / gib:.3f} GiB a chip"),
        (
            "total memory",
            f"{plan.total_bytes / gib:.2f} of {plan.hbm_bytes / gib:.0f} GiB a chip "
            f"({100 * plan.total_bytes / plan.hbm_bytes:.0f} %)",
        ),
        (
            "arithmetic",
            f"{plan.gflops_per_image:.2f} GFLOP an image, forward and backward{of_teacher}",
        ),
        ("memory traffic", f"{plan.bytes_per_step / 1e9:.1f} GB a step and chip"),
        ("collectives", collectives or "none"),
        ("cycles", f"{plan.cycles:,} a step"),
        ("images/s, at most", f"{plan.images_per_second:,.0f}"),
        ("of peak FLOP/s, at most", f"{100 * plan.mfu:.1f} %"),
        ("training, at least", f"{plan.hours:.1f} hours"),
        ("input, up to", f"{plan.images_per_second_per_host:,.0f} images/s from each host"),
    ]
    if plan.custom_kernels:
        share = f"{plan.custom_cycles:,} of the cycles, in {plan.custom_kernels} calls"
        rows.append(("custom kernels", share))
    if plan.unknown_kernels:
        rows.append(("left out", f"{plan.unknown_kernels} custom kernels, not in the cycles"))
    return rows


def _parser() -> command_line.Parser:
    parser = command_line.Parser(
        prog="python -m convit_jax.plan", description=__doc__, epilog=describe_topologies()
    )
    command_line.add_config_flag(parser)
    add = parser.add_argument
    add("--topology", metavar="NAME", help="the slice: v5e-256, or v4:4x4x4; see below")
    text = "training images, by default ImageNet's"
    parser.add_option("--examples", imagenet.NUM_TRAIN_IMAGES, text, metavar="N")
    text = "classes, by default ImageNet's"
    parser.add_option("--classes", imagenet.NUM_CLASSES, text, metavar="N")
    add("--sweep", choices=["batch"], help="batch: find the largest that fits, within an eighth")
    add("--json", action="store_true", help="print one JSON object a line")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Plan as the flags say; return 1 if the run does not fit."""
    arguments, settings = command_line.parse(_parser(), argv)
    if not arguments.topology:
        raise InputError("expected --topology=NAME, such as v5e-256 or v4:4x4x4")
    for name in ("examples", "classes"):
        command_line.expect(arguments, name, getattr(arguments, name) >= 1, "at least 1")
    topology = find_topology(arguments.topology)
    config = command_line.read_config(arguments, settings)
    sizes = {"num_examples": arguments.examples, "num_classes": arguments.classes}
    if arguments.sweep:
        plans = sweep(config, topology, **sizes)
    else:
        plans = iter([make_plan(config, topology, **sizes)])
    done = []
    for plan in plans:
        done.append(plan)
        if arguments.json:
            print(json.dumps(dataclasses.asdict(plan) | {"estimates": _ESTIMATES}), flush=True)
        else:
            print_table(_rows(plan), title=f"{plan.model} on {plan.topology}")
    if not arguments.json:
        if arguments.sweep:
            print(describe_largest(done))
        print(f"The estimates are {_ESTIMATES}.")
    return 0 if any(plan.fits for plan in done) else 1


if __name__ == "__main__":
    sys.exit(command_line.run("plan", main))
