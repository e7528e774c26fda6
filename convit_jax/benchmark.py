"""Measure speed on this machine:

    python -m convit_jax.benchmark model convit_tiny deit_tiny
    python -m convit_jax.benchmark input --data folder:IMAGES
    python -m convit_jax.benchmark input --scale imagenet
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
from collections.abc import Callable, Iterable, Sequence
from inspect import signature
from typing import Any, TypeVar

import jax
import numpy as np
from etils import epath

from convit_jax import models
from convit_jax.benchmarks.attention import FORMS, AttentionTime, measure_attention
from convit_jax.benchmarks.input import InputSpeed, measure_input
from convit_jax.benchmarks.kernel import StepCost, measure_kernel
from convit_jax.benchmarks.long_run import Sample, Trend, compute_trends, measure_long_run
from convit_jax.benchmarks.model import ModelSpeed, measure_model
from convit_jax.benchmarks.scale import ScaleCost, measure_scale
from convit_jax.benchmarks.timm_model import (
    check_timm,
    measure_onnx,
    measure_timm,
    missing_for_onnx,
)
from convit_jax.console import command_line
from convit_jax.console.screen import print_table
from convit_jax.data.sources import imagenet
from convit_jax.errors import InputError, fitting_memory
from convit_jax.system.devices import find_devices
from convit_jax.system.paths import output_directory
from convit_jax.system.whole_file import write_whole

T = TypeVar("T")


def _make_parser() -> command_line.Parser:
    parser = command_line.Parser(prog="python -m convit_jax.benchmark", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    output = command_line.Parser(add_help=False)
    output.add_argument("--json", action="store_true", help="print one JSON object per line")
    common = command_line.Parser(add_help=False, parents=[output])
    common.add_option("--image-size", 224, "side in pixels")
    timing = command_line.Parser(add_help=False)
    timing.add_option("--seconds", 10.0, "how long to repeat each")

    model = commands.add_parser(
        "model",
        parents=[common, timing],
        help="parameters, FLOPs, compile time and images/s of the forward pass and train step",
    )
    model.add_argument("models", nargs="+", metavar="MODEL", help="one of list_models(), or 'all'")
    model.add_option("--batch-size", 32, "images per step")
    model.add_option("--dtype", "float32", "float32 or bfloat16")
    add = model.add_argument
    text = "number of GPSA layers, overrides the models'; 0: plain attention, for comparison"
    add("--gpsa-layers", type=int, metavar="N", help=text)
    text = "also time timm's model in the same type, on the GPU if PyTorch has one; needs timm"
    add("--against-timm", action="store_true", help=text)
    add("--compiled", action="store_true", help="also time timm's model with torch.compile")
    add("--profile", metavar="DIR", help="write a profile of five train steps, for TensorBoard")

    input_ = commands.add_parser(
        "input",
        parents=[common, timing],
        help="images per core-second from bytes to uint8 batches, and the memory of a worker",
    )
    source = input_.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", help="tfds:NAME:SPLIT[:DIR], folder:PATH or wds:x-{00..63}.tar")
    source.add_argument(
        "--scale",
        metavar="N",
        help="instead, what opening, a batch and a subset of N tiny images cost in each layout; "
        "'imagenet' for as many as ImageNet has, which takes ten minutes",
    )
    input_.add_option("--batch-size", 96, "rows per batch")
    text = "also time timm's transforms, in turn"
    input_.add_argument("--against-timm", action="store_true", help=text)

    comparison = command_line.Parser(add_help=False)
    comparison.add_option("--model", "convit_small", "a ConViT")
    comparison.add_argument(
        "--forms", nargs="+", default=list(FORMS), choices=list(FORMS), metavar="FORM",
        help=f"any of: {'; '.join(FORMS)} (default all)",
    )  # fmt: skip
    attention = commands.add_parser(
        "attention",
        parents=[common, timing, comparison],
        help="time of an attention layer in each form on this machine's device",
    )
    attention.add_option("--batch-size", 32, "images")
    attention.add_option("--dtype", "float32", "float32 or bfloat16")
    kernel = commands.add_parser(
        "kernel",
        parents=[common, comparison],
        help="cycles of a train step on a TPU with each form of attention, estimated by the TPU "
        "compiler (pip install libtpu), which takes minutes per form",
    )
    kernel.add_option("--topology", "v5e-4", "slice to compile for")
    kernel.add_option("--batch-size", 64, "images per chip")

    long_run = commands.add_parser(
        "long-run",
        parents=[output],
        help="whether memory, descriptors, threads or shared memory of a run and its workers grow "
        "while it trains, evaluates and saves",
    )
    long_run.add_option("--steps", 5000, "length of the run")
    long_run.add_option("--batch-size", 32, "images per step")
    long_run.add_option("--workers", 2, "processes that read data")
    text = "write all samples to long_run.jsonl and their curves to long_run.png"
    long_run.add_argument("--out", metavar="DIR", help=text)
    return parser


def _call(measure: Callable[..., T], arguments: argparse.Namespace, **others: Any) -> T:
    """Call a function with the flags of its parameters' names, and other arguments."""
    values = vars(arguments) | others
    return measure(**{name: values[name] for name in signature(measure).parameters})


def _show(
    arguments: argparse.Namespace,
    records: Iterable[Any],
    title: str,
    headings: Sequence[str],
    row: Callable[[Any], Sequence[str]],
    note: str = "",
) -> None:
    """Print each record as a JSON object, or all as the rows of a table with a note below it."""
    if arguments.json:
        for record in records:
            print(json.dumps(dataclasses.asdict(record)), flush=True)
        return
    # Files and pipes have no width: make the table wide enough for every number.
    width = None if sys.stdout.isatty() else 200
    print_table(map(row, records), headings, title=title, right=headings[1:], width=width)
    if note:
        print(note)


def _measure_models(arguments: argparse.Namespace) -> None:
    names = models.list_models() if arguments.models == ["all"] else arguments.models
    for name in names:
        models.architecture(name)  # reports a misspelt name before anything is measured
    if arguments.compiled and not arguments.against_timm:
        raise InputError("--compiled applies to timm's model: expected --against-timm with it")
    if arguments.against_timm:
        check_timm(names)
    modes = ["eager"] * arguments.against_timm + ["compiled"] * arguments.compiled
    # ONNX Runtime is compared on a CPU in float32, as PyTorch exports the model.
    on_cpu = jax.default_backend() == "cpu" and arguments.dtype == "float32"
    missing = missing_for_onnx() if arguments.against_timm and on_cpu else []
    compares_onnx = arguments.against_timm and on_cpu and not missing

    def measure(name: str) -> ModelSpeed:
        speed, timm = _call(measure_model, arguments, name=name), dict[str, float]()
        for mode in modes:
            compiled = mode == "compiled"
            speeds = _call(measure_timm, arguments, name=name, compiled=compiled)
            timm[f"{mode} forward"], timm[f"{mode} train"] = speeds
        if compares_onnx:
            timm["ONNX forward"] = _call(measure_onnx, arguments, name=name)
        return dataclasses.replace(speed, timm=timm)

    device = f"{jax.local_device_count()} {jax.devices()[0].device_kind} device(s)"
    size = f"batch {arguments.batch_size}, {arguments.image_size} px, {arguments.dtype}"
    headings = ["model", "parameters", "GFLOP", "forward/s", "share", "compile"]
    headings += ["train/s", "share", "compile"]
    headings += [f"{pass_} to timm {mode}" for mode in modes for pass_ in ("forward", "train")]
    headings += ["forward to ONNX Runtime"] * compares_onnx
    note = (
        "GFLOP: one image's forward pass. forward/s, train/s: images per second. share: of the "
        "speed of one\nlarge matrix product here; a train step counts as three forward passes."
    )
    if missing:
        note += f"\nONNX Runtime is not compared without {', '.join(missing)}."
    if arguments.profile:
        note += f"\nProfiles: tensorboard --logdir {arguments.profile} (pip install xprof)"
    _show(arguments, map(measure, names), f"{device}, {size}", headings, _model_row, note)


def _model_row(speed: ModelSpeed) -> tuple[str, ...]:
    ours = {"forward": speed.forward_images_per_second, "train": speed.train_images_per_second}
    return (
        speed.model,
        f"{speed.parameters:,}",
        f"{speed.gflops:.2f}",
        f"{speed.forward_images_per_second:.1f}",
        f"{speed.forward_share:.2f}",
        f"{speed.forward_compile_seconds:.1f} s",
        f"{speed.train_images_per_second:.1f}",
        f"{speed.train_share:.2f}",
        f"{speed.train_compile_seconds:.1f} s",
        *(f"{ours[key.split()[1]] / theirs:.2f}" for key, theirs in speed.timm.items()),
    )


def _measure_scale(arguments: argparse.Namespace) -> None:
    text, least = arguments.scale, imagenet.NUM_CLASSES * 10
    num_images = imagenet.NUM_TRAIN_IMAGES if text == "imagenet" else 0
    if text.isdecimal():
        num_images = int(text)
    in_range = least <= num_images <= 2**31
    command_line.expect(arguments, "scale", in_range, f"'imagenet' or a number from {least:,} on")

    def row(cost: ScaleCost) -> Sequence[str]:
        find = "" if cost.find_seconds is None else f"{cost.find_seconds:.2f} s"
        seconds = (cost.reopen_seconds, cost.batch_seconds, cost.subset_seconds)
        megabytes = (cost.megabytes, cost.pickled_megabytes)
        return (
            *(cost.layout, find, f"{cost.open_seconds:.2f} s"),
            *(f"{s:.1f} s" for s in seconds),
            *(f"{m:,.0f} MB" for m in megabytes),
        )

    headings = ("layout", "find", "open", "again", "first batch", "a tenth", "memory", "to workers")
    _show(arguments, measure_scale(num_images), f"{num_images:,} images", headings, row)


def _measure_input(arguments: argparse.Namespace) -> None:
    if arguments.scale is not None:
        _measure_scale(arguments)
        return
    speeds, megabytes = _call(measure_input, arguments)

    def row(s: InputSpeed) -> Sequence[str]:
        ratios = (s.ratio, s.decodings_per_view)
        return s.work, f"{s.images_per_core_second:.0f}", *(f"{r:.2f}" if r else "" for r in ratios)

    title = f"{arguments.data}, {arguments.image_size} px, batch {arguments.batch_size}"
    note = f"A worker process used up to {megabytes:.0f} MB." if megabytes else ""
    headings = ("work", "images per core-second", "ratio to timm", "decodings per view")
    _show(arguments, speeds, title, headings, row, note)
    if arguments.json:
        print(json.dumps({"worker_megabytes": megabytes}))


def _measure_attention(arguments: argparse.Namespace) -> None:
    def row(t: AttentionTime) -> Sequence[str]:
        return t.form, f"{1e3 * t.forward_seconds:.2f} ms", f"{1e3 * t.train_seconds:.2f} ms"

    times = _call(measure_attention, arguments)
    title = (
        f"{arguments.model}, one attention layer on {jax.devices()[0].device_kind}, "
        f"{arguments.batch_size} images of {arguments.image_size} px, {arguments.dtype}"
    )
    note = "The fused kernel is timed on TPUs only, cuDNN on GPUs only."
    _show(arguments, times, title, ("attention", "forward", "with gradients"), row, note)


def _measure_kernels(arguments: argparse.Namespace) -> None:
    def row(c: StepCost) -> Sequence[str]:
        cycles = (f"{c.cycles / 1e6:.1f} M", f"{c.kernel_cycles / 1e6:.2f} M")
        kernels = (f"{c.forward_cycles:,}", f"{c.backward_cycles:,}")
        return c.form, *cycles, *kernels, f"{c.compile_seconds:.0f} s"

    costs = _call(measure_kernel, arguments)
    headings = ("cycles per step", "in kernels", "forward kernel", "backward kernel", "compile")
    title = f"{arguments.model}, {arguments.topology}, {arguments.batch_size} images per chip"
    note = "Cycles: the compiler's estimates plus the kernels' schedules, not measured."
    _show(arguments, costs, f"{title}, bfloat16", ("attention", *headings), row, note)


def _measure_long_run(arguments: argparse.Namespace) -> None:
    command_line.expect(arguments, "steps", arguments.steps >= 1000, "1000 or more")
    command_line.expect(arguments, "workers", arguments.workers >= 0, "0 or more")
    directory = None if arguments.out is None else output_directory(arguments.out, "--out")
    samples = measure_long_run(arguments.steps, arguments.batch_size, arguments.workers)
    trends = compute_trends(samples)
    if directory is not None:
        _write_long_run(directory, samples)

    def row(t: Trend) -> Sequence[str]:
        growth = (f"{t.slope:+,.2f} ± {t.error:.2f}", f"{t.late:+,.2f}")
        is_flat = {True: "yes", False: "no", None: ""}[t.flat]
        return t.figure, f"{t.floor:,.1f}", f"{t.peak:,.1f}", *growth, is_flat

    headings = ("between evaluations", "peak", "growth per 1,000 steps", "in the second half")
    title = f"{arguments.steps:,} steps, {arguments.workers} workers"
    note = (
        "Memory in MB. allocated, blocks (memory blocks of Python's objects): of the main process, "
        "without freed memory\nthat the C library may retain. Flat: growth per 1,000 steps in the "
        "second half is less than 1 (blocks: 10,000)."
    )
    _show(arguments, trends, title, ("all processes together", *headings, "flat"), row, note)


def _write_long_run(directory: epath.Path, samples: Sequence[Sample]) -> None:
    from convit_jax.analysis.figures import style  # noqa: PLC0415  (imports matplotlib)
    from convit_jax.analysis.figures.resources import resources_over_steps  # noqa: PLC0415

    columns = {
        field.name: np.array([getattr(sample, field.name) for sample in samples])
        for field in dataclasses.fields(Sample)
    }
    lines = "".join(json.dumps(dataclasses.asdict(sample)) + "\n" for sample in samples)
    write_whole(directory / "long_run.jsonl", lines)
    picture = style.render_figure(resources_over_steps(columns), "png")
    write_whole(directory / "long_run.png", picture)


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
