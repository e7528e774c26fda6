"""Shows what models learned: gates, non-locality, attention maps, accuracy under masks:

    python -m convit_jax.analyze --weights runs/mine --images folder:IMAGES/val --out figures
    python -m convit_jax.analyze --weights A.pth --compare B.bin --images cat.jpg --out figures

writes figures (PNG and SVG), tables (CSV) and `report.html`, one page that holds them all. IMAGES
are files, folders or patterns such as "*.jpg", or labelled examples: tfds:NAME:SPLIT[:DIR],
folder:PATH, digits:test. With labels, accuracy is measured without content and without position
(paper Tables 5 and 6). Of a workdir the history of the training is shown too.
"""

from convit_jax.system.huge_pages import restart_with_huge_pages

if __name__ == "__main__":
    restart_with_huge_pages()

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx

from convit_jax import analysis, data
from convit_jax.analysis import locality
from convit_jax.analysis.attention import check_layers
from convit_jax.analysis.findings import Findings, find_out, layer_records
from convit_jax.analysis.history import read_history
from convit_jax.analysis.report import write_report
from convit_jax.console import command_line
from convit_jax.console.screen import Screen
from convit_jax.data.images.preprocessing import Preprocessing
from convit_jax.data.sources.image_paths import find_images
from convit_jax.data.sources.opening import KINDS
from convit_jax.errors import InputError, boundary
from convit_jax.evaluation.accuracy import IMAGES_PER_DEVICE, measure_accuracy
from convit_jax.models import VisionTransformer
from convit_jax.system.cache import keep_compiled_programs
from convit_jax.system.paths import output_directory
from convit_jax.weights import Weights, open_weights


def _parser() -> command_line.Parser:
    parser = command_line.Parser(prog="python -m convit_jax.analyze", description=__doc__)
    command_line.add_weights_flags(parser)
    parser.add_argument(
        "--compare", action="append", default=[], metavar="W", help="another model, beside it"
    )
    parser.add_argument(
        "--name", action="append", default=[], help="what to call each model, in the same order"
    )
    parser.add_argument("--images", nargs="+", required=True, metavar="D", help="see above")
    parser.add_argument("--out", required=True, metavar="DIR", help="where to write; is made")
    parser.add_argument(
        "--count",
        type=int,
        default=1024,
        help="how many of the images, at even distances, are measured on (default 1024, as in the "
        "paper)",
    )
    parser.add_argument(
        "--pictures", type=int, default=3, help="images whose attention is shown (default 3)"
    )
    parser.add_argument(
        "--layers", metavar="N,N…", help="whose attention is shown, from 1 (default: four of them)"
    )
    parser.add_argument(
        "--query", metavar="ROW,COLUMN", help="the patch that asks, from 0 (default: the middle)"
    )
    parser.add_argument(
        "--variant",
        choices=locality.VARIANTS,
        default="propagated",
        help="non-locality from each layer's own input (default), or as the released code has it",
    )
    parser.add_argument("--json", action="store_true", help="also print the table of layers")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Analyses as the flags say."""
    arguments = _parser().parse_args(argv)
    for name, least in (("count", 1), ("pictures", 0)):
        command_line.expect(arguments, name, getattr(arguments, name) >= least, f"at least {least}")
    layers = _numbers(arguments, "layers", None)
    query = _numbers(arguments, "query", 2)
    fields = command_line.overrides(arguments.override)
    out = output_directory(arguments.out, "--out")
    examples = _Examples.open(arguments.images, arguments.count)
    keep_compiled_programs()
    with Screen() as screen:
        found = []
        for weights, name in _named_weights(arguments):
            model = weights.model(**fields)
            if layers is not None:
                check_layers(layers, model.architecture.depth)
            screen.show(f"looking at {name}", 0, 1)
            preprocessing = weights.preprocessing(model.architecture)
            looked = find_out(
                name,
                model,
                examples.pixels(preprocessing),
                preprocessing,
                pictures=arguments.pictures,
                query=query,
                variant=arguments.variant,
                history=weights.directory and read_history(weights.directory),
            )
            if examples.source is not None:
                looked = _with_accuracy(looked, weights, model, examples.source, preprocessing)
            found.append(looked)
        page = write_report(
            found,
            out,
            layers=layers,
            facts=_facts(arguments, found),
            progress=lambda name: screen.show(f"drawing {name}", 0, 1),
        )
    if arguments.json:
        for looked in found:
            for record in layer_records(looked):
                print(json.dumps({"model": looked.name} | record))
    else:
        print(f"wrote {page}, and its figures and tables beside it")
    return 0


def _numbers(arguments: argparse.Namespace, name: str, count: int | None) -> tuple[int, ...] | None:
    """What a flag such as `--query 7,7` says; None where it is not given."""
    text = getattr(arguments, name)
    if text is None:
        return None
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    expected = "numbers with commas between them, such as 2,10" if count is None else "ROW,COLUMN"
    command_line.expect(arguments, name, bool(numbers) and count in (None, len(numbers)), expected)
    return numbers


def _named_weights(arguments: argparse.Namespace) -> list[tuple[Weights, str]]:
    """All weights, each with a name of its own for the figures."""
    opened = [open_weights(name) for name in (arguments.weights, *arguments.compare)]
    if len(arguments.name) > len(opened):
        raise InputError(f"--name is given {len(arguments.name)} times for {len(opened)} models")
    names = list(arguments.name)
    for weights in opened[len(names) :]:
        names.append(weights.likely_model() or pathlib.PurePath(weights.name).name)
    if len(set(names)) < len(names):
        raise InputError(
            f"the models are called {', '.join(names)}: tell them apart by --name, once for each"
        )
    return list(zip(opened, names, strict=True))


@dataclasses.dataclass(frozen=True)
class _Examples:
    """Images to look at, and their labels if there are any.

    Attributes:
        paths: of image files, or none.
        source: labelled examples, or None.
    """

    paths: Sequence[str]
    source: data.Source | None

    @classmethod
    def open(cls, names: Sequence[str], count: int) -> "_Examples":
        """Up to so many of the named images, at even distances.

        Raises:
            InputError: there are none.
        """
        if names[0].partition(":")[0] in KINDS:
            if len(names) > 1:
                raise InputError(f"--images {' '.join(names)}: expected one name of examples")
            return cls((), data.spread_out(data.open_source(names[0]), count))
        paths = find_images(names)
        return cls([paths[i] for i in data.evenly(len(paths), count)], None)

    def pixels(self, preprocessing: Preprocessing) -> np.ndarray:
        """What a model sees of them: uint8 [B, height, width, channels].

        Raises:
            InputError: one of them cannot be read.
        """
        source, words = self.source, "cannot read the image {}".format
        if source is None:
            return np.stack([preprocessing.crop(path, words(path)) for path in self.paths])
        crops = []
        for index in range(len(source)):
            name = words(source.describe(index))
            with boundary(name, ""):
                image, _ = source[index]
            crops.append(preprocessing.crop(image, name, rotate=source.rotates_by_exif))
        return np.stack(crops)


def _with_accuracy(
    found: Findings,
    weights: Weights,
    model: VisionTransformer,
    examples: data.Source,
    preprocessing: Preprocessing,
) -> Findings:
    """The findings with accuracy under the masks of the paper's Tables 5 and 6."""
    source, class_subset = data.align_classes(
        examples, weights.class_names(), weights.num_classes()
    )
    gpsa_layers = model.architecture.gpsa_layers
    # Of ten layers the first three, five and ten, as in Table 6.
    some = sorted({max(1, round(gpsa_layers * share)) for share in (0.3, 0.5, 1)})
    masks = [("none", 0)]
    masks += [("pos_embed", 0)] * (model.pos_embed is not None)
    masks += [(kind, n) for kind in ("content", "position") for n in some if gpsa_layers]
    top1 = {}
    for kind, count in masks:
        masked = nnx.clone(model)
        if kind == "pos_embed":
            analysis.mask_pos_embed(masked)
        elif kind == "content":
            analysis.mask_content(masked, count)
        elif kind == "position":
            analysis.mask_position(masked, count)
        top1[kind, count] = measure_accuracy(
            masked,
            source,
            preprocessing,
            batch_size=IMAGES_PER_DEVICE * jax.device_count(),
            reading=data.Reading(),
            class_subset=class_subset,
        ).top1
    return dataclasses.replace(found, top1=top1, chance=1 / len(class_subset or source.class_names))


def _facts(arguments: argparse.Namespace, found: Sequence[Findings]) -> dict[str, str]:
    """What the page says at its top."""
    kinds = {"propagated": "each layer's own input", "released": "the patches' embeddings alone"}
    facts = {"title": f"What {' and '.join(f.name for f in found)} learned"}
    for f, name in zip(found, (arguments.weights, *arguments.compare), strict=True):
        a = f.architecture
        facts[f.name] = (
            f"{name}: {a.depth} layers, {a.gpsa_layers} of them GPSA, {a.num_heads} heads of "
            f"{a.head_dim}, {a.grid[0]} x {a.grid[1]} patches"
        )
    facts["images"] = f"{' '.join(arguments.images)}: {found[0].locality.examples:,} measured on"
    facts["non-locality"] = f"from {kinds[arguments.variant]}"
    facts["query"] = "row {}, column {} of the patches, from 0".format(*found[0].query)
    return facts


if __name__ == "__main__":
    sys.exit(command_line.run("analyze", main))
