"""Plans a run on a TPU slice without one:

    python -m convit_jax.plan --config configs/convit_b.py --topology v4:4x4x4
    python -m convit_jax.plan --config configs/convit_s.py --topology v5e-8 --sweep batch

The TPU compiler, which runs on any Linux (pip install libtpu), compiles the very train step of
train.py for the slice; this says what it would take. All figures are the compiler's estimates,
nothing is run: steps take at least so long. One compilation takes minutes.
"""

import os

# The arrays' shapes are worked out on the CPU; a TPU that is here is not needed, nor looked for.
os.environ["JAX_PLATFORMS"] = "cpu"

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence

from absl import flags
from rich import box
from rich.table import Table

from convit_jax.config import Config
from convit_jax.console import command_line
from convit_jax.console.screen import PipedConsole
from convit_jax.data.sources import imagenet
from convit_jax.errors import InputError
from convit_jax.planning import (
    Plan,
    Topology,
    describe_topologies,
    find_topology,
    make_plan,
)

_TOPOLOGY = flags.DEFINE_string("topology", None, "The slice: v5e-256, or v4:4x4x4.")
_EXAMPLES = flags.DEFINE_integer(
    "examples", imagenet.NUM_TRAIN_IMAGES, "Training images; ImageNet's by default."
)
_CLASSES = flags.DEFINE_integer("classes", imagenet.NUM_CLASSES, "Classes; ImageNet's by default.")
_SWEEP = flags.DEFINE_enum(
    "sweep", None, ["batch"], "batch: find the largest that fits, to within an eighth."
)
_JSON = flags.DEFINE_bool("json", False, "One JSON object a line, for programs.")

# Up to how many images a chip larger batches are tried.
_MOST = 2048
# A wrong guess costs minutes: the largest batch is known well enough by an eighth.
_NEAR = 8
_ESTIMATES = "the TPU compiler's, nothing was run"


def sweep(config: Config, topology: Topology, *, examples: int, classes: int) -> Iterator[Plan]:
    """Plans that narrow down the largest batch that fits.

    Batches twice as large each time until one does not fit, or where the config's own does not,
    halves of it until one does; then between the two, until they are apart by an eighth of the
    smaller or less. The last two that differ are the answer: see `describe_largest`.
    """
    unit = 2 * topology.chips * config.optimizer.accumulate

    def plan_for(size: int) -> Plan:
        resized = dataclasses.replace(config, batch_size=size, eval_batch_size=size)
        return make_plan(resized, topology, num_examples=examples, num_classes=classes)

    plan = make_plan(config, topology, num_examples=examples, num_classes=classes)
    yield plan
    grow, size = plan.fits, config.batch_size
    while plan.fits == grow:
        last, size = size, size * 2 if grow else size // 2 // unit * unit
        if size > _MOST * topology.chips or not size:
            return
        plan = plan_for(size)
        yield plan
    fitting, too_large = (last, size) if grow else (size, last)
    while too_large - fitting > max(unit, fitting // _NEAR):
        between = (fitting + too_large) // 2 // unit * unit
        if between == fitting:
            return
        plan = plan_for(between)
        yield plan
        fitting, too_large = (between, too_large) if plan.fits else (fitting, between)


def describe_largest(plans: Sequence[Plan]) -> str:
    """What a sweep's plans come to, in a sentence or two."""
    fitting = max((plan.batch_size for plan in plans if plan.fits), default=0)
    too_large = min((plan.batch_size for plan in plans if not plan.fits), default=0)
    if not fitting:
        return f"No batch fits: {too_large:,}, the smallest tried, does not."
    chips = plans[0].chips
    beyond = f"{too_large:,} does not" if too_large else "larger ones were not tried"
    told = f"The largest batch that fits: {fitting:,}, {fitting // chips:,} a chip ({beyond})."
    # Where memory is nearly full the compiler computes again what it could have kept.
    fastest = max(plans, key=lambda plan: plan.images_per_second)
    if fastest.batch_size == fitting:
        return told
    pace = f"{fastest.images_per_second:,.0f}"
    return f"{told} Of those tried, {fastest.batch_size:,} takes the most images/s: {pace}."


def _rows(plan: Plan) -> list[tuple[str, str]]:
    """What is printed of a plan."""
    gib = 2**30
    rows = [
        ("slice", f"{plan.topology}: {plan.chips} chips, {plan.hosts} host(s)"),
        ("mesh", f"data={plan.mesh[0]} x fsdp={plan.mesh[1]}"),
        ("batch", f"{plan.batch_size:,}: {plan.batch_per_chip:,} a chip"),
        ("parameters", f"{plan.parameter_bytes / gib:.3f} GiB a chip"),
        ("optimizer state", f"{plan.optimizer_bytes / gib:.3f} GiB a chip"),
    ]
    if not plan.fits:
        return [*rows, ("does not fit", plan.problem)]
    moved = ", ".join(
        f"{count} {kind} of {size / 1e6:.1f} MB" for kind, count, size in plan.collectives
    )
    rows += [
        ("activations, temporaries", f"{plan.temporary_bytes / gib:.3f} GiB a chip"),
        ("batch, program", f"{plan.other_bytes / gib:.3f} GiB a chip"),
        (
            "memory in all",
            f"{plan.total_bytes / gib:.2f} of {plan.hbm_bytes / gib:.0f} GiB a chip "
            f"({100 * plan.total_bytes / plan.hbm_bytes:.0f} %)",
        ),
        ("arithmetic", f"{plan.gflops_per_image:.2f} GFLOP an image, forward and backward"),
        ("memory traffic", f"{plan.bytes_per_step / 1e9:.1f} GB a step and chip"),
        ("collectives", moved or "none"),
        ("cycles", f"{plan.cycles:,} a step"),
        ("images/s, at most", f"{plan.images_per_second:,.0f}"),
        ("of the peak, at most", f"{100 * plan.mfu:.1f} %"),
        ("training, at least", f"{plan.hours:.1f} hours"),
        ("input, up to", f"{plan.images_per_second_per_host:,.0f} images/s from each host"),
    ]
    if plan.custom_kernels:
        share = f"{plan.custom_cycles:,} of the cycles, in {plan.custom_kernels} calls"
        rows.append(("custom kernels", share))
    if plan.unknown_kernels:
        rows.append(("left out", f"{plan.unknown_kernels} custom kernels, not in the cycles"))
    return rows


def _print(plan: Plan) -> None:
    table = Table(box=box.SIMPLE, title=f"{plan.model} on {plan.topology}", show_header=False)
    for row in _rows(plan):
        table.add_row(*row)
    PipedConsole().print(table)


def main(argv: Sequence[str]) -> int:
    """Plans as the flags say; returns 1 if the run does not fit."""
    if {"--help", "-h", "-help"} & set(argv):
        print(f"{__doc__}\nFlags: --config, --config.key=value, and\n")
        for flag in (_TOPOLOGY, _EXAMPLES, _CLASSES, _SWEEP, _JSON):
            print(f"--{flag.name}: {flags.FLAGS[flag.name].help}")
        print(f"\n{describe_topologies()}")
        return 0
    overrides = command_line.parse(argv)
    if not _TOPOLOGY.value:
        raise InputError("expected --topology=NAME, such as v5e-256 or v4:4x4x4")
    for flag in (_EXAMPLES, _CLASSES):
        if flag.value < 1:
            raise InputError(f"--{flag.name}={flag.value}: expected at least 1")
    topology = find_topology(_TOPOLOGY.value)
    config = command_line.read_config(overrides)
    if _SWEEP.value:
        plans = sweep(config, topology, examples=_EXAMPLES.value, classes=_CLASSES.value)
    else:
        options = {"num_examples": _EXAMPLES.value, "num_classes": _CLASSES.value}
        plans = [make_plan(config, topology, **options)]
    done = []
    for plan in plans:
        done.append(plan)
        if _JSON.value:
            print(json.dumps(dataclasses.asdict(plan) | {"estimates": _ESTIMATES}), flush=True)
        else:
            _print(plan)
    if not _JSON.value:
        if _SWEEP.value:
            print(describe_largest(done))
        print(f"The estimates are {_ESTIMATES}.")
    return 0 if any(plan.fits for plan in done) else 1


if __name__ == "__main__":
    sys.exit(command_line.run("plan", lambda: main(sys.argv)))
