"""Measure speed on this machine:

    python -m convit_jax.benchmark model convit_tiny deit_tiny
    python -m convit_jax.benchmark input --data folder:IMAGES
    python -m convit_jax.benchmark attention
    python -m convit_jax.benchmark kernel
    python -m convit_jax.benchmark long-run --steps 5000 --out DIR

Compare only numbers measured in one run of this command: machines differ and are noisy.
"""

from convit_jax.system.huge_pages import restart_with_huge_pages

if __name__ == "__main__":
    restart_with_huge_pages()

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from rich import box
from rich.table import Table

from convit_jax import models
from convit_jax.benchmarks.attention import FORMS, measure_attention
from convit_jax.benchmarks.input import measure_input
from convit_jax.benchmarks.kernel import measure_kernel
from convit_jax.benchmarks.long_run import Sample, compute_trends, measure_long_run
from convit_jax.benchmarks.model import ModelSpeed, measure_model
from convit_jax.benchmarks.timm_model import check_timm, measure_timm
from convit_jax.console import command_line
from convit_jax.console.screen import PipedConsole
from convit_jax.errors import InputError, fitting_memory
from convit_jax.system.devices import find_devices
from convit_jax.system.paths import output_directory
from convit_jax.system.whole_file import write_whole


def _make_parser() -> command_line.Parser:
    parser = command_line.Parser(prog="python -m convit_jax.benchmark", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    common = command_line.Parser(add_help=False)
    common.add_argument("--image-size", type=int, default=224, help="side in pixels (default 224)")
    common.add_argument("--json", action="store_true", help="print one JSON object per line")
    timing = command_line.Parser(add_help=False)
    timing.add_argument(
        "--seconds", type=float, default=10.0, help="how long to repeat each (default 10)"
    )

    model = commands.add_parser(
        "model",
        parents=[common, timing],
        help="parameters, FLOPs, compile time and images/s of the forward pass and train step",
    )
    model.add_argument("models", nargs="+", metavar="MODEL", help="one of list_models(), or 'all'")
    model.add_argument("--batch-size", type=int, default=32, help="images per step (default 32)")
    model.add_argument("--dtype", default="float32", help="float32 (default) or bfloat16")
    model.add_argument(
        "--gpsa-layers",
        type=int,
        metavar="N",
        help="number of GPSA layers, overrides the models'; 0: plain attention, for comparison",
    )
    model.add_argument(
        "--against-timm",
        action="store_true",
        help="also time timm's model in the same type, on the GPU if PyTorch has one; needs timm",
    )
    model.add_argument(
        "--compiled", action="store_true", help="also time timm's model with torch.compile"
    )
    model.add_argument(
        "--profile", metavar="DIR", help="write a profile of five train steps, for TensorBoard"
    )

    input_ = commands.add_parser(
        "input",
        parents=[common, timing],
        help="images per core-second from bytes to uint8 batches, and the memory of a worker",
    )
    input_.add_argument("--data", required=True, help="tfds:NAME:SPLIT[:DIR] or folder:PATH")
    input_.add_argument("--batch-size", type=int, default=96, help="rows per batch (default 96)")
    input_.add_argument(
        "--against-timm", action="store_true", help="also time timm's transforms, in turn"
    )
    comparison = command_line.Parser(add_help=False)
    comparison.add_argument(
        "--model", default="convit_small", help="a ConViT (default convit_small)"
    )
    comparison.add_argument(
        "--forms", nargs="+", default=list(FORMS), choices=list(FORMS), metavar="FORM",
        help=f"any of: {'; '.join(FORMS)} (default all)",
    )  # fmt: skip
    attention = commands.add_parser(
        "attention",
        parents=[common, timing, comparison],
        help="time of an attention layer in each form on this machine's device",
    )
    attention.add_argument("--batch-size", type=int, default=32, help="images (default 32)")
    attention.add_argument("--dtype", default="float32", help="float32 (default) or bfloat16")
    kernel = commands.add_parser(
        "kernel",
        parents=[common, comparison],
        help="cycles of a train step on a TPU with each form of attention, estimated by the TPU "
        "compiler (pip install libtpu), which takes minutes per form",
    )
    kernel.add_argument("--topology", default="v5e-4", help="slice to compile for (default v5e-4)")
    kernel.add_argument("--batch-size", type=int, default=64, help="images per chip (default 64)")
    long_run = commands.add_parser(
        "long-run",
        help="whether memory, descriptors, threads or shared memory of a run and its workers grow "
        "while it trains, evaluates and saves",
    )
    long_run.add_argument(
        "--steps", type=int, default=5000, help="length of the run (default 5000)"
    )
    long_run.add_argument("--batch-size", type=int, default=32, help="images per step (default 32)")
    long_run.add_argument(
        "--workers", type=int, default=2, help="processes that read data (default 2)"
    )
    long_run.add_argument(
        "--out", metavar="DIR",
        help="write all samples to long_run.jsonl and their curves to long_run.png",
    )  # fmt: skip
    long_run.add_argument("--json", action="store_true", help="print one JSON object per line")
    return parser


def _measure_models(arguments: argparse.Namespace) -> None:
    names = models.list_models() if arguments.models == ["all"] else arguments.models
    for name in names:
        models.architecture(name)  # reports a misspelt name before anything is measured
    if arguments.compiled and not arguments.against_timm:
        raise InputError("--compiled applies to timm's model: expected --against-timm with it")
    if arguments.against_timm:
        check_timm(names)
    keys = ("batch_size", "image_size", "dtype", "seconds", "profile", "gpsa_layers")
    options = {k: getattr(arguments, k) for k in keys}
    modes = ["eager"] * arguments.against_timm + ["compiled"] * arguments.compiled
    speeds = (_add_timm(measure_model(name, **options), modes, arguments) for name in names)
    if arguments.json:
        _print_json(speeds)
        return
    device = f"{jax.local_device_count()} {jax.devices()[0].device_kind} device(s)"
    size = f"batch {arguments.batch_size}, {arguments.image_size} px, {arguments.dtype}"
    headings = ["parameters", "GFLOP", "forward/s", "compile", "train/s", "compile"]
    headings += [f"{pass_} to timm {mode}" for mode in modes for pass_ in ("forward", "train")]
    _print_table(f"{device}, {size}", ("model", *headings), map(_model_row, speeds))
    print("GFLOP: one image's forward pass. forward/s, train/s: images per second.")
    if arguments.profile:
        print(f"Profiles: tensorboard --logdir {arguments.profile} (pip install xprof)")


def _add_timm(speed: ModelSpeed, modes: Sequence[str], arguments: argparse.Namespace) -> ModelSpeed:
    """Measure timm's model in each mode, "eager" or "compiled", and add its speeds."""
    timm: dict[str, float] = {}
    for mode in modes:
        timm[f"{mode} forward"], timm[f"{mode} train"] = measure_timm(
            speed.model,
            batch_size=arguments.batch_size,
            image_size=arguments.image_size,
            dtype=arguments.dtype,
            seconds=arguments.seconds,
            compiled=mode == "compiled",
        )
    return dataclasses.replace(speed, timm=timm)


def _model_row(speed: ModelSpeed) -> tuple[str, ...]:
    ours = {"forward": speed.forward_images_per_second, "train": speed.train_images_per_second}
    return (
        speed.model,
        f"{speed.parameters:,}",
        f"{speed.gflops:.2f}",
        f"{speed.forward_images_per_second:.1f}",
        f"{speed.forward_compile_seconds:.1f} s",
        f"{speed.train_images_per_second:.1f}",
        f"{speed.train_compile_seconds:.1f} s",
        *(f"{ours[key.split()[1]] / theirs:.2f}" for key, theirs in speed.timm.items()),
    )


def _measure_input(arguments: argparse.Namespace) -> None:
    speeds, megabytes = measure_input(
        arguments.data,
        image_size=arguments.image_size,
        batch_size=arguments.batch_size,
        seconds=arguments.seconds,
        against_timm=arguments.against_timm,
    )
    if arguments.json:
        _print_json(speeds)
        print(json.dumps({"worker_megabytes": megabytes}))
        return
    rows = [
        (s.work, f"{s.images_per_core_second:.0f}", f"{s.ratio:.2f}" if s.ratio else "")
        for s in speeds
    ]
    title = f"{arguments.data}, {arguments.image_size} px, batch {arguments.batch_size}"
    _print_table(title, ("work", "images per core-second", "ratio to timm"), rows)
    if megabytes:
        print(f"A worker process used up to {megabytes:.0f} MB.")


def _measure_attention(arguments: argparse.Namespace) -> None:
    times = measure_attention(
        arguments.model,
        arguments.forms,
        images=arguments.batch_size,
        image_size=arguments.image_size,
        dtype=arguments.dtype,
        seconds=arguments.seconds,
    )
    if arguments.json:
        _print_json(times)
        return
    rows = [
        (t.form, f"{1e3 * t.forward_seconds:.2f} ms", f"{1e3 * t.train_seconds:.2f} ms")
        for t in times
    ]
    size = f"{arguments.batch_size} images of {arguments.image_size} px, {arguments.dtype}"
    title = f"{arguments.model}, one attention layer on {jax.devices()[0].device_kind}"
    _print_table(f"{title}, {size}", ("attention", "forward", "with gradients"), rows)
    print("The fused kernel is timed on TPUs only, cuDNN on GPUs only.")


def _measure_kernels(arguments: argparse.Namespace) -> None:
    costs = measure_kernel(
        arguments.model,
        arguments.forms,
        topology=arguments.topology,
        images=arguments.batch_size,
        image_size=arguments.image_size,
    )
    if arguments.json:
        _print_json(costs)
        return
    rows = [
        (c.form, f"{c.cycles / 1e6:.1f} M", f"{c.kernel_cycles / 1e6:.2f} M",
         f"{c.forward_cycles:,}", f"{c.backward_cycles:,}", f"{c.compile_seconds:.0f} s")
        for c in costs
    ]  # fmt: skip
    headings = ["cycles per step", "in kernels", "forward kernel", "backward kernel", "compile"]
    title = f"{arguments.model}, {arguments.topology}, {arguments.batch_size} images per chip"
    _print_table(f"{title}, bfloat16", ("attention", *headings), rows)
    print("Cycles: the compiler's estimates plus the kernels' schedules, not measured.")


def _measure_long_run(arguments: argparse.Namespace) -> None:
    command_line.expect(arguments, "steps", arguments.steps >= 1000, "1000 or more")
    command_line.expect(arguments, "workers", arguments.workers >= 0, "0 or more")
    directory = None if arguments.out is None else output_directory(arguments.out, "--out")
    samples = measure_long_run(arguments.steps, arguments.batch_size, arguments.workers)
    trends = compute_trends(samples)
    if directory is not None:
        _write_long_run(directory, samples)
    if arguments.json:
        _print_json(trends)
        return
    rows = [
        (t.figure, f"{t.floor:,.1f}", f"{t.peak:,.1f}", f"{t.slope:+,.2f} ± {t.error:.2f}",
         f"{t.late:+,.2f}", {True: "yes", False: "no", None: ""}[t.flat])
        for t in trends
    ]  # fmt: skip
    headings = ["between evaluations", "peak", "growth per 1,000 steps", "in the second half"]
    title = f"{arguments.steps:,} steps, {arguments.workers} workers"
    _print_table(title, ("all processes together", *headings, "flat"), rows)
    print(
        "Memory in MB. allocated, blocks (memory blocks of Python's objects): of the main process, "
        "without freed memory\nthat the C library may retain. Flat: growth per 1,000 steps in the "
        "second half is less than 1 (blocks: 10,000)."
    )


def _write_long_run(directory: epath.Path, samples: Sequence[Sample]) -> None:
    from convit_jax.analysis.figures import style  # noqa: PLC0415  (imports matplotlib)
    from convit_jax.analysis.figures.resources import resources_over_steps  # noqa: PLC0415

    columns = {
        field.name: np.array([getattr(sample, field.name) for sample in samples])
        for field in dataclasses.fields(Sample)
    }
    lines = "".join(json.dumps(dataclasses.asdict(sample)) + "\n" for sample in samples)
    write_whole(directory / "long_run.jsonl", lambda path: path.write_text(lines))
    picture = style.render_figure(resources_over_steps(columns), "png")
    write_whole(directory / "long_run.png", lambda path: path.write_bytes(picture))


def _print_json(records: Iterable[Any]) -> None:
    for record in records:
        print(json.dumps(dataclasses.asdict(record)), flush=True)


def _print_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(box=box.SIMPLE, title=title)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # Files and pipes have no width: make the table wide enough for every number.
    PipedConsole(width=None if sys.stdout.isatty() else 200).print(table)


_COMMANDS = {
    "model": _measure_models,
    "input": _measure_input,
    "attention": _measure_attention,
    "kernel": _measure_kernels,
    "long-run": _measure_long_run,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, and print the results."""
    arguments = _make_parser().parse_args(argv)
    for name in ("batch_size", "image_size"):
        if name in arguments:
            command_line.expect(arguments, name, getattr(arguments, name) >= 1, "at least 1")
    seconds = getattr(arguments, "seconds", 0.0)
    command_line.expect(arguments, "seconds", 0 <= seconds < math.inf, "0 or more")
    # `kernel` compiles for a TPU that need not be present, `long-run` starts another process.
    if arguments.command not in ("kernel", "long-run"):
        find_devices()
    with fitting_memory(f"--batch-size={arguments.batch_size}"):
        _COMMANDS[arguments.command](arguments)
    return 0


if __name__ == "__main__":
    sys.exit(command_line.run("benchmark", main))
