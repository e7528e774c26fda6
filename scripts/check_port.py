"""Check the released weights in this port against published facts, and print a table of them.

    scripts/check_port.sh
    scripts/check_port.sh --validation tfds:imagenet2012:validation --v2 folder:IMAGENET_V2
    scripts/check_port.sh --weights DIRECTORY --models convit_tiny

Without data: the numbers of parameters, that the released code's files and timm's have the same
tensors, and the gates that the paper prints. With the validation images: Tables 1, 5 and 6. With
the other sets: timm's results. The exit code is 1 if a fact does not hold or none could be checked.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import io
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from convit_jax import analysis, evaluate
from convit_jax.analysis.published import GATES, GATES_SOURCE, NUM_IMAGES, TABLE_1
from convit_jax.console import command_line
from convit_jax.console.screen import print_table
from convit_jax.errors import InputError, nearest
from convit_jax.system.paths import user_path
from convit_jax.weights import Weights, open_weights
from convit_jax.weights.files import TORCH_SUFFIXES

# Where a model's weights were published: the released code's file, and timm's copy on the Hub,
# whose SHA-256 is compared with the one that the Hub lists when it is fetched.
RELEASED = "https://dl.fbaipublicfiles.com/convit/{}.pth", "hf://timm/{}.fb_in1k"
NUM_PARAMETERS = {"convit_tiny": 5_710_512, "convit_small": 27_777_322, "convit_base": 86_540_040}

# The flag of each dataset.
DATASETS = {
    "imagenet2012": "validation",
    "imagenet2012_real": "real",
    "imagenet_v2": "v2",
    "imagenet_a": "imagenet_a",
    "imagenet_r": "imagenet_r",
    "imagenet_sketch": "sketch",
}
MASKS = (("pos_embed", 0), *((kind, n) for kind in ("content", "position") for n in (3, 5, 10)))

# Half of a last printed digit, of gates (0.09) and of the paper's accuracies (73.1 %).
HALF_A_HUNDREDTH, HALF_A_TENTH = 0.005, 0.05
# JPEG decoders and float32 arithmetic differ from those of the published evaluations.
ACCURACY, LOSS = 0.1, 0.002


@dataclasses.dataclass(frozen=True)
class Fact:
    """A published fact and what was obtained here.

    Attributes:
        model, what, source: of what model, what it is, and where it was published.
        expected, obtained: numbers, or one word to be equal.
        tolerance: largest difference that is accepted.
        digits: number of decimals to print.
    """

    model: str
    what: str
    source: str
    expected: tuple[float, ...] | str
    obtained: tuple[float, ...] | str
    tolerance: float = 0.0
    digits: int = 0

    def difference(self) -> float | None:
        """Return the difference of largest magnitude, or None for words and unequal lengths."""
        if isinstance(self.expected, str) or len(self.expected) != len(self.obtained):
            return None
        differences = np.subtract(self.obtained, self.expected)
        return float(differences[np.argmax(np.abs(differences))])

    def holds(self) -> bool:
        """Return whether the difference is within the tolerance; NaN never is."""
        difference = self.difference()
        if difference is None:
            return self.expected == self.obtained
        return abs(difference) <= self.tolerance + 1e-9

    def row(self) -> tuple[str, ...]:
        """Return the cells of the table."""
        difference = self.difference()
        values = (
            value if isinstance(value, str) else " ".join(f"{v:,.{self.digits}f}" for v in value)
            for value in (self.expected, self.obtained)
        )
        shown = "" if difference is None else f"{difference:+,.{max(self.digits, 3)}f}"
        return self.model, self.what, self.source, *values, shown, "yes" if self.holds() else "NO"


def weights_facts(model: str, copies: Sequence[Weights]) -> Iterator[Fact]:
    """Yield the number of parameters, and that all copies have the same tensors."""
    count = sum(tensor.size for tensor in copies[0].tensors.values())
    yield Fact(model, "parameters", "layout", (NUM_PARAMETERS[model],), (count,))
    first, *others = (_sha256(weights)[:16] for weights in copies)
    for weights, digest in zip(copies[1:], others, strict=True):
        yield Fact(model, "SHA-256 of tensors", f"{copies[0].name} = {weights.name}", first, digest)


def _sha256(weights: Weights) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights.tensors):
        tensor = weights.tensors[name]
        digest.update(f"{name} {tensor.shape} {tensor.dtype}".encode())
        digest.update(np.ascontiguousarray(tensor).data)
    return digest.hexdigest()


def gate_facts(model: str, weights: Weights) -> Iterator[Fact]:
    """Yield the gates that the paper prints."""
    for layer, expected in GATES.get(model, {}).items():
        gating = weights.tensors.get(f"blocks.{layer - 1}.attn.gating_param", np.zeros(0))
        if gating.shape != (len(expected),):
            raise InputError(
                f"{weights.name}: layer {layer} has {gating.size} gates, expected {len(expected)}: "
                f"these are not the weights of {model}"
            )
        obtained = tuple(float(1 / (1 + np.exp(-value))) for value in gating.astype(np.float64))
        what = f"gates of layer {layer}"
        yield Fact(model, what, GATES_SOURCE[model], expected, obtained, HALF_A_HUNDREDTH, 2)


def accuracy_facts(model: str, weights: str, arguments: argparse.Namespace) -> Iterator[Fact]:
    """Yield the accuracies on all data that were given."""
    for dataset, flag in DATASETS.items():
        name = getattr(arguments, flag)
        if name is None:
            continue
        yield from _facts_of_evaluation(model, dataset, analysis.NO_MASK, weights, name, arguments)
        if dataset == "imagenet2012":
            for mask in MASKS:
                if analysis.published(model, dataset, mask):
                    yield from _facts_of_evaluation(model, dataset, mask, weights, name, arguments)
        elif f"{dataset} clean" in NUM_IMAGES and arguments.validation is not None:
            yield from _facts_of_evaluation(
                *(model, f"{dataset} clean", analysis.NO_MASK, weights, arguments.validation),
                arguments, f"--classes-of={name}",
            )  # fmt: skip


def _facts_of_evaluation(
    model: str,
    dataset: str,
    mask: tuple[str, int],
    weights: str,
    data: str,
    arguments: argparse.Namespace,
    *flags: str,
) -> Iterator[Fact]:
    published = analysis.published(model, dataset, mask)
    assert published is not None, (model, dataset, mask)
    kind, layers = mask
    what = dataset
    if kind:
        flag = f"mask-{kind.replace('_', '-')}"
        flags += (f"--{flag}={layers}" if layers else f"--{flag}",)
        what += f", {flag}" + (f" {layers}" if layers else "")
    measured = _evaluate(weights, data, arguments, *flags)
    if not kind:
        counts = (float(NUM_IMAGES[dataset]),), (float(measured["examples"]),)
        yield Fact(model, f"{what}: images", "the dataset", *counts)
    top1, top5, loss = 100 * measured["top1"], 100 * measured["top5"], measured["loss"]
    is_of_paper = published.source.startswith("paper")
    tolerance, digits = (ACCURACY + HALF_A_TENTH, 1) if is_of_paper else (ACCURACY, 2)
    source = published.source
    yield Fact(model, f"{what}: top-1", source, (published.top1,), (top1,), tolerance, digits)
    if published.top5 is not None:
        yield Fact(model, f"{what}: top-5", source, (published.top5,), (top5,), tolerance, digits)
    if published.loss is not None:
        yield Fact(model, f"{what}: loss", source, (published.loss,), (loss,), LOSS, 3)
    if dataset == "imagenet2012" and not kind:
        for metric, expected, value in zip(
            ("top-1", "top-5"), TABLE_1[model], (top1, top5), strict=True
        ):
            tolerance = ACCURACY + HALF_A_TENTH
            yield Fact(
                model, f"{what}: {metric}", "paper, Table 1", (expected,), (value,), tolerance, 1
            )


def _evaluate(weights: str, data: str, arguments: argparse.Namespace, *flags: str) -> Any:
    """Return what `convit_jax.evaluate --json` prints."""
    options = [f"--weights={weights}", f"--data={data}", f"--num-workers={arguments.num_workers}"]
    if arguments.batch_size is not None:
        options.append(f"--batch-size={arguments.batch_size}")
    # Published accuracies were measured on images as they are stored.
    options += ["--exif-rotation=ignore", "--json", *flags]
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        evaluate.main(options)
    return json.loads(output.getvalue())


def _copies(model: str, directory: str | None) -> tuple[list[Weights], list[str]]:
    """Open a model's weights, all copies that there are, and return why others are missing."""
    if directory is not None:
        names = [f"{model}{suffix}" for suffix in (".safetensors", *TORCH_SUFFIXES)]
        files = [path for name in names if (path := user_path(directory) / name).is_file()]
        if not files:
            raise InputError(f"--weights={directory}: expected {' or '.join(names)} in it")
        return [open_weights(str(file)) for file in files], []
    copies, missing = [], []
    for location in RELEASED:
        try:
            copies.append(open_weights(location.format(model)))
        except InputError as error:
            missing.append(str(error))
    return copies, missing


def _parser() -> command_line.Parser:
    parser = command_line.Parser(prog="scripts/check_port.sh", description=__doc__)
    add = parser.add_argument
    text = "with convit_tiny.safetensors or .pth and so on, rather than fetching them"
    add("--weights", metavar="DIRECTORY", help=text)
    names = ",".join(NUM_PARAMETERS)
    add("--models", metavar="NAMES", default=names, help=f"some of {names} (the default)")
    text = (
        "the ImageNet validation images: tfds:NAME:SPLIT[:DIR], folder:PATH or wds:x-{00..63}.tar"
    )
    add("--validation", metavar="D", help=text)
    add("--real", metavar="D", help="ReaL: tfds:imagenet2012_real:validation")
    add("--v2", metavar="D", help="ImageNet-V2: tfds:imagenet_v2/matched-frequency:test")
    add("--imagenet-a", metavar="D", help="ImageNet-A: tfds:imagenet_a:test")
    add("--imagenet-r", metavar="D", help="ImageNet-R: tfds:imagenet_r:test")
    add("--sketch", metavar="D", help="ImageNet-Sketch: tfds:imagenet_sketch:test")
    add("--batch-size", type=int, help="images per step on all devices, as in evaluate")
    add("--num-workers", type=int, default=-1, help="processes that read images; -1: one per core")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Check all facts, print the table, and return the exit code."""
    arguments = _parser().parse_args(argv)
    models = arguments.models.split(",")
    unknown = [model for model in models if model not in NUM_PARAMETERS]
    if unknown:
        raise InputError(f"--models: '{unknown[0]}', {nearest(unknown[0], NUM_PARAMETERS)}")
    facts: list[Fact] = []
    unchecked = [f"{d} (no --{f.replace('_', '-')})" for d, f in DATASETS.items()
                 if getattr(arguments, f) is None]  # fmt: skip
    for model in models:
        copies, missing = _copies(model, arguments.weights)
        unchecked += missing
        if not copies:
            unchecked.append(f"anything of {model}")
            continue
        if len(copies) == 1:
            unchecked.append(
                f"that the copies of {model} have the same tensors (only one is there)"
            )
        facts += weights_facts(model, copies)
        facts += gate_facts(model, copies[0])
        facts += accuracy_facts(model, copies[0].name, arguments)
    headings = ("model", "fact", "source", "expected", "obtained", "difference", "holds")
    if facts:
        print_table((fact.row() for fact in facts), headings, width=160)
    for what in unchecked:
        print(f"not checked: {what}")
    wrong = sum(not fact.holds() for fact in facts)
    print(f"{len(facts) - wrong} of {len(facts)} checked facts hold")
    return 1 if wrong or not facts else 0


if __name__ == "__main__":
    sys.exit(command_line.run("check_port", main))
