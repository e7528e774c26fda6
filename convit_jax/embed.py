"""Write the features of images, for other programs:

    python -m convit_jax.embed --weights convit_tiny IMAGES/ --out embeddings.npz
    python -m convit_jax.embed --weights runs/mine cat.jpg "more/*.jpg" --out features.parquet

IMAGE is as in convit_jax.predict. The file has a row for each image that can be read: its path
(`image`) and what the head would classify (`features`, float32). If an image cannot be read, it is
reported on standard error, the others are written, and the exit code is 1.
"""

from convit_jax.system.huge_pages import restart_with_huge_pages

if __name__ == "__main__":
    restart_with_huge_pages()

import importlib.util
import math
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from convit_jax.console import command_line
from convit_jax.console.screen import Screen
from convit_jax.data.sources.image_paths import find_images
from convit_jax.errors import InputError, RunError
from convit_jax.evaluation.image_files import apply_to_images, read_images
from convit_jax.models import VisionTransformer
from convit_jax.system.cache import keep_compiled_programs
from convit_jax.system.paths import output_file
from convit_jax.system.whole_file import write_whole
from convit_jax.weights import open_weights

_Writer = Callable[[pathlib.Path, list[str], np.ndarray], None]


def _parser() -> command_line.Parser:
    parser = command_line.Parser(prog="python -m convit_jax.embed", description=__doc__)
    command_line.add_weights_flags(parser)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="file, folder or pattern")
    text = "the file: .npz for NumPy, or .parquet (needs pyarrow)"
    parser.add_argument("--out", required=True, metavar="FILE", help=text)
    parser.add_option("--batch-size", 16, "images per step")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 1 if an image could not be read."""
    arguments = _parser().parse_args(argv)
    at_least_one = arguments.batch_size >= 1
    command_line.expect(arguments, "batch_size", at_least_one, "at least 1")
    overrides = command_line.overrides(arguments.override)
    write = _writer(arguments.out)
    file = output_file(arguments.out, "--out")
    keep_compiled_programs()
    broken: list[str] = []

    def report(path: str, problem: str) -> None:
        broken.append(path)
        command_line.print_message("embed", problem)

    with Screen():
        paths = find_images(arguments.images)
        weights = open_weights(arguments.weights)
        model = weights.model(**overrides)
        preprocessing = weights.preprocessing(model.architecture)
    batch_size = min(arguments.batch_size, len(paths))
    num_batches = math.ceil(len(paths) / batch_size)
    images = read_images(paths, preprocessing, report)
    embeddings = apply_to_images(
        VisionTransformer.features, model, preprocessing, images, batch_size
    )
    with Screen(only="convit_jax.console") as screen:
        rows = list(_counted(embeddings, batch_size, num_batches, screen.counting("embedding")))
    if not rows:
        raise RunError("none of the images could be read, so nothing was written")
    names, features = [name for name, _ in rows], np.stack([row for _, row in rows])
    write_whole(file, lambda path: write(path, names, features))
    print(f"{len(names):,} images, {features.shape[1]} features each: {arguments.out}")
    return 1 if broken else 0


def _counted(
    rows: Iterator[tuple[str, np.ndarray]],
    batch_size: int,
    num_batches: int,
    progress: Callable[[int, int], None],
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the rows, and report the progress once a batch."""
    for count, row in enumerate(rows, 1):
        yield row
        if count % batch_size == 0:
            progress(count // batch_size, num_batches)


def _writer(name: str) -> _Writer:
    """Return the function that writes a file of this name.

    Raises:
        InputError: it ends in something else, or pyarrow is not installed.
    """
    suffix = pathlib.PurePath(name).suffix
    writers = {".npz": _write_npz, ".parquet": _write_parquet}
    if suffix not in writers:
        raise InputError(f"--out={name}: expected a file that ends in {' or '.join(writers)}")
    if suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise InputError(f"--out={name} needs another package: pip install pyarrow; or write .npz")
    return writers[suffix]


def _write_npz(path: pathlib.Path, names: list[str], features: np.ndarray) -> None:
    with path.open("wb") as file:  # given a path, NumPy would append .npz
        np.savez(file, image=np.array(names), features=features)


def _write_parquet(path: pathlib.Path, names: list[str], features: np.ndarray) -> None:
    import pyarrow  # noqa: PLC0415  (an optional extra)
    from pyarrow import parquet  # noqa: PLC0415

    # File names may hold bytes that are not UTF-8.
    texts = [name.encode(errors="backslashreplace").decode() for name in names]
    rows = pyarrow.FixedSizeListArray.from_arrays(
        pyarrow.array(features.ravel()), features.shape[1]
    )
    parquet.write_table(pyarrow.table({"image": texts, "features": rows}), path)


if __name__ == "__main__":
    sys.exit(command_line.run("embed", main))
