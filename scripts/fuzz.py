"""Fuzzing: reads randomly garbled files in the way users' files are read.

    python scripts/fuzz.py                                  # 10,000 of each kind
    python scripts/fuzz.py jpeg png --count 300 --seed 1    # as in CI, which runs every kind
    python scripts/fuzz.py pth --only 4711                  # repeat one file and save it in --keep

A garbled file must be read, or rejected with a one-sentence `InputError` (for images:
`BrokenImageError`). Anything else is a finding, which is saved in --keep and makes the exit code 1:
another exception, the death of the process, code executed from a pickle (it would create a file),
more than five seconds of computing (or thirty of waiting), or more than `MEMORY` above what reading
the valid files takes.

File N of a kind is a function of (seed, kind, N). Files are read in a child process, which is
restarted when it dies or hangs.
"""

import argparse
import collections
import contextlib
import dataclasses
import gc
import io
import json
import os
import pathlib
import random
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import garbling  # noqa: E402  (on the path only now)

LIMIT = 5.0  # CPU seconds per file
PATIENCE = 6  # the limit of wall time, on a busy machine, is so many times LIMIT
MEMORY = 3 << 30  # bytes of address space per file: the largest image allowed takes 0.7 GB
START_TIMEOUT = 120.0  # seconds until the child process must have started


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file: valid examples, how they are garbled, and how they are read.

    Attributes:
        name: name of the garbled file, including its suffix.
        valid: the content of valid files.
        garble: (content, random generator) → garbled content.
        read: function of the path; of the directory's path if `locations` is given.
        locations: if the valid files are parts of a directory, (directory, name in it) of each.
    """

    name: str
    valid: Sequence[bytes]
    garble: garbling.Garbler
    read: Callable[[pathlib.Path], None]
    locations: Sequence[tuple[pathlib.Path, str]] = ()


def read_weights(path: pathlib.Path) -> None:
    """Open weights and call everything that commands call, including creating the model."""
    from convit_jax.weights import open_weights  # noqa: PLC0415  (not needed by the parent)

    weights = open_weights(path)
    architecture = weights.architecture()
    weights.class_names()
    weights.likely_model()
    weights.preprocessing(architecture)
    weights.model()


def read_image(path: pathlib.Path) -> None:
    """Decode an image, with a number of channels that depends on its size."""
    from convit_jax.data.images.decoding import decode  # noqa: PLC0415

    content = path.read_bytes()
    channels = 1 + len(content) % 4
    pixels = decode(content, channels)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != channels:
        raise TypeError(f"decoded to {pixels.dtype} {pixels.shape}")


def read_tfrecord(path: pathlib.Path) -> None:
    """Open a TFDS dataset and read every record as in evaluation and as in training."""
    from convit_jax.data import open_source  # noqa: PLC0415
    from convit_jax.data.reading import Row, RowReader  # noqa: PLC0415

    source = open_source(f"tfds:fuzzed:train:{path}")
    rows = [Row(index) for index in range(len(source))]
    out = np.empty((len(rows), 8, 8, 3), np.uint8)
    for seed in (None, 0):
        reader = RowReader(source, lambda pixels, *_: np.resize(pixels, (8, 8, 3)), (8, 8, 3), seed)
        result = reader.read(rows, out)
        if len(result.labels) != len(rows):
            raise TypeError("rows are missing")


def read_run(path: pathlib.Path) -> None:
    """Check a resumed run against the configuration in its checkpoint."""
    from etils import epath  # noqa: PLC0415

    from convit_jax.config import resolve  # noqa: PLC0415
    from convit_jax.training.resumption import check_same_run  # noqa: PLC0415

    check_same_run(epath.Path(path), resolve({}), ("a", "b", "c"), 100)


def make_kind(name: str, scratch: pathlib.Path) -> Kind:
    """Return a kind, creating its valid files in `scratch`."""
    if name in ("jpeg", "png", "image"):
        formats = ("WEBP", "GIF", "TIFF", "BMP", "PPM") if name == "image" else (name.upper(),)
        valid = [content for format_name in formats for content in _valid_images(format_name)]
        garble = {"jpeg": garbling.jpeg, "png": garbling.png, "image": garbling.bytewise}[name]
        return Kind(f"x.{name}", valid, garble, read_image)
    if name == "tfrecord":
        directory = _valid_tfds(scratch / "tfds")
        path = next(directory.rglob("*.tfrecord*"))
        return _kind_in_directory(directory, [path], garbling.tfrecord, read_tfrecord)
    if name == "run":
        directory = _valid_run(scratch / "run")
        paths = sorted(directory.rglob("metadata"))
        return _kind_in_directory(directory, paths, _garble_json_or_bytes, read_run)
    weights = _valid_weights(scratch)
    if name == "checkpoint":
        directory = scratch / "checkpoint"
        paths = [path for path in sorted(directory.rglob("*")) if path.is_file()]
        return _kind_in_directory(directory, paths, _garble_json_or_bytes, read_weights)
    if name == "config":
        paths = [scratch / "hub" / "config.json"]
        return _kind_in_directory(scratch / "hub", paths, garbling.json_text, read_weights)
    if name == "card":
        valid = [weights["card.safetensors"]]
        return Kind("x.safetensors", valid, garbling.card, read_weights)
    suffix = f".{name}"
    valid = [content for file, content in weights.items() if file.endswith(suffix)]
    pth = garbling.torch_file(str(scratch / "canary"))
    return Kind(f"x{suffix}", valid, pth if name == "pth" else garbling.safetensors, read_weights)


def _kind_in_directory(
    directory: pathlib.Path,
    paths: Sequence[pathlib.Path],
    garble: garbling.Garbler,
    read: Callable[[pathlib.Path], None],
) -> Kind:
    """Return a kind that garbles some files of a directory, one at a time."""
    locations = [(directory, str(path.relative_to(directory))) for path in paths]
    return Kind("", [path.read_bytes() for path in paths], garble, read, locations)


def _garble_json_or_bytes(content: bytes, rng: random.Random) -> bytes:
    """Garble a file of a checkpoint, some of which are JSON."""
    if content.startswith(b"{"):
        return garbling.json_text(content, rng)
    return garbling.bytewise(content, rng)


def _valid_run(directory: pathlib.Path) -> pathlib.Path:
    """Write a run's checkpoint without its state: config, card and data."""
    from convit_jax.config import resolve  # noqa: PLC0415
    from convit_jax.weights import Card  # noqa: PLC0415

    records = {
        "config": dataclasses.asdict(resolve({})),
        "card": Card(class_names=("a", "b", "c")).as_json(),
        "data": {"train_examples": 100},
    }
    for item, record in records.items():
        (directory / "5" / item).mkdir(parents=True)
        (directory / "5" / item / "metadata").write_text(json.dumps(record))
    return directory


def _valid_weights(scratch: pathlib.Path) -> dict[str, bytes]:
    """Return files of weights of a tiny ConViT by name, and write `checkpoint` and `hub`."""
    import safetensors.numpy  # noqa: PLC0415
    import safetensors.torch  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from flax import nnx  # noqa: PLC0415

    from convit_jax import convert, create_model  # noqa: PLC0415
    from convit_jax.weights import to_torch  # noqa: PLC0415

    model = create_model(
        "convit_tiny", num_classes=3, image_size=16, num_heads=4, head_dim=2, depth=2,
        gpsa_layers=1, patch_size=8,
    )  # fmt: skip
    params = {
        ".".join(map(str, path)): np.asarray(variable[...])
        for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param))
    }
    arrays = to_torch(params, model.architecture)
    tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    plain = scratch / "plain.safetensors"
    safetensors.numpy.save_file(arrays, plain)
    safetensors.torch.save_file(
        {name: tensor.bfloat16() for name, tensor in tensors.items()}, scratch / "bf16.safetensors"
    )
    torch.save(tensors, scratch / "plain.pth")
    released = {
        "model": tensors, "optimizer": {}, "epoch": 3, "args": argparse.Namespace(lr=1e-3),
    }  # fmt: skip
    torch.save(released, scratch / "released.pth")
    torch.save(tensors, scratch / "old.pth", _use_new_zipfile_serialization=False)
    checkpoint = scratch / "checkpoint"
    with contextlib.redirect_stdout(io.StringIO()):
        convert.main([str(plain), str(checkpoint)])
        convert.main([str(checkpoint), str(scratch / "card.safetensors")])
    hub = scratch / "hub"
    hub.mkdir()
    shutil.copy(plain, hub / "model.safetensors")
    config = {
        "architecture": "convit_tiny", "num_classes": 3, "num_features": 8,
        "global_pool": "token", "pretrained_cfg": {
            "tag": "fb_in1k", "num_classes": 3, "input_size": [3, 16, 16],
            "fixed_input_size": True, "interpolation": "bicubic", "crop_pct": 0.875,
            "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "label_names": ["a", "b", "c"],
            "first_conv": "patch_embed.proj", "classifier": "head",
        },
    }  # fmt: skip
    (hub / "config.json").write_text(json.dumps(config))
    return {
        path.name: path.read_bytes()
        for path in sorted(scratch.iterdir())
        if path.suffix in (".safetensors", ".pth")
    }


def _valid_images(format_name: str) -> list[bytes]:
    """Return small images of several modes, with and without EXIF."""
    rng, out = np.random.default_rng(0), []
    colours = Image.fromarray(rng.integers(0, 256, (13, 18, 3), dtype=np.uint8), "RGB")
    exif = Image.Exif()
    exif[0x112] = 6
    modes = {
        "JPEG": ("RGB", "L", "CMYK"), "PNG": ("RGB", "L", "RGBA", "P", "LA", "I;16", "1"),
        "WEBP": ("RGB", "RGBA"), "GIF": ("P", "L"), "TIFF": ("RGB", "L", "CMYK", "F", "1"),
        "BMP": ("RGB", "L", "P"), "PPM": ("RGB", "L"),
    }[format_name]  # fmt: skip
    for mode in modes:
        for options in ({}, {"exif": exif}, {"progressive": True, "quality": 40}):
            image = (
                colours.convert("I").convert("I;16") if mode == "I;16" else colours.convert(mode)
            )
            buffer = io.BytesIO()
            image.save(buffer, format_name, **options)
            out.append(buffer.getvalue())
    return out


def _valid_tfds(directory: pathlib.Path) -> pathlib.Path:
    """Write a TFDS dataset of ten small images in one TFRecord file."""
    import tensorflow_datasets as tfds  # noqa: PLC0415

    class Fuzzed(tfds.core.GeneratorBasedBuilder):
        """Ten images of two classes."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> tfds.core.DatasetInfo:
            features = {
                "image": tfds.features.Image(encoding_format="png"),
                "label": tfds.features.ClassLabel(names=["a", "b"]),
                "file_name": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
            )  # fmt: skip

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            del dl_manager
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Any:
            for i in range(10):
                image = np.full((8, 8, 3), 20 * i, np.uint8)
                yield i, {"image": image, "label": i % 2, "file_name": f"{i}.png"}

    Fuzzed(data_dir=directory, file_format="tfrecord").download_and_prepare()
    return directory


class Worker:
    """The child process's part: garbles and reads one file after another."""

    def __init__(self, scratch: pathlib.Path, seed: int) -> None:
        scratch.mkdir()
        self._scratch, self._seed = scratch, seed
        self._kinds: dict[str, Kind] = {}
        self._target = scratch / "garbled"

    def warm_up(self, kind: str) -> list[str]:
        """Create valid files and read them, so that everything needed for reading is loaded.

        Returns:
            A message for each valid file that could not be read.
        """
        (self._scratch / kind).mkdir()
        self._kinds[kind] = make_kind(kind, self._scratch / kind)
        complaints = []
        for index, content in enumerate(self._kinds[kind].valid):
            path, _ = self._write(kind, index, content)
            try:
                self._kinds[kind].read(path)
            except Exception as error:
                complaints.append(f"{kind}: valid file {index} cannot be read: {error!r}")
        return complaints

    def read(self, kind: str, number: int) -> dict[str, Any]:
        """Garble and read a file, and report the result."""
        from convit_jax.data.images.decoding import BrokenImageError  # noqa: PLC0415
        from convit_jax.errors import InputError  # noqa: PLC0415

        rng = random.Random(f"{self._seed} {kind} {number}")
        index = rng.randrange(len(self._kinds[kind].valid))
        content = self._kinds[kind].garble(self._kinds[kind].valid[index], rng)
        path, file = self._write(kind, index, content)
        _reset_peak_memory()
        memory_before, start, result, message = _memory("VmRSS"), time.process_time(), "read", ""
        try:
            self._kinds[kind].read(path)
        except (InputError, BrokenImageError) as error:
            result, message = "refused", str(error)
            if not message.strip() or "\n" in message.strip() or len(message) > 3000:
                result, message = "no sentence", repr(message[:3000])
        except Exception as error:
            result, message = type(error).__name__, traceback.format_exc(limit=-6)
        seconds, memory = time.process_time() - start, _memory("VmHWM") - memory_before
        canary = self._scratch / kind / "canary"
        if canary.exists():
            canary.unlink()
            result = "CODE EXECUTED"
        return {"result": result, "message": message, "seconds": seconds, "memory": memory,
                "file": str(file)}  # fmt: skip

    def _write(self, kind: str, index: int, content: bytes) -> tuple[pathlib.Path, pathlib.Path]:
        """Write a garbled file; return the path to read, and the file's, which may be inside."""
        if self._target.is_dir():
            shutil.rmtree(self._target)
        self._target.unlink(missing_ok=True)
        locations = self._kinds[kind].locations
        if locations:
            directory, name = locations[index]
            shutil.copytree(directory, self._target)
            (self._target / name).write_bytes(content)
            return self._target, self._target / name
        self._target.mkdir()
        path = self._target / self._kinds[kind].name
        path.write_bytes(content)
        return path, path


def _memory(name: str) -> int:
    """Return a number of bytes of this process: VmRSS, VmHWM (its peak) or VmSize."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(status.split(f"{name}:")[1].split()[0])


def _reset_peak_memory() -> None:
    gc.collect()
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def serve(scratch: pathlib.Path, seed: int, kinds: Sequence[str]) -> None:
    """Run the child process: read lines "KIND NUMBER", answer each by a line of JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries must not mix with the answers
    worker = Worker(scratch, seed)
    complaints = [complaint for kind in kinds for complaint in worker.warm_up(kind)]
    gc.collect()
    gc.freeze()  # collecting the existing objects would take a third of a second per file
    limit = _memory("VmSize") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    answers.write(json.dumps(complaints) + "\n")
    answers.flush()
    for line in sys.stdin:
        kind, number = line.split()
        answers.write(json.dumps(worker.read(kind, int(number))) + "\n")
        answers.flush()


class WorkerProcess:
    """Starts and restarts the child process, and sends it requests."""

    def __init__(self, scratch: pathlib.Path, flags: argparse.Namespace) -> None:
        self._scratch, self._flags, self._starts = scratch, flags, 0
        self.complaints: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None

    def read(self, kind: str, number: int) -> dict[str, Any]:
        """Have a file read, and return the answer: also if the process dies, or hangs twice."""
        for _attempt in (1, 2):
            process = self._process or self._start()
            assert process.stdin is not None
            process.stdin.write(f"{kind} {number}\n".encode())
            process.stdin.flush()
            line = self._read_line(process, PATIENCE * LIMIT)
            if line:
                answer = json.loads(line)
                if answer["seconds"] <= LIMIT:
                    return answer
            code = self.close()
            if line is not None and not line:
                message = (self._scratch / "stderr.txt").read_text(errors="replace")[-2000:]
                result = f"the process died, code {code}"
                return {"result": result, "message": message, "file": self._garbled_file()}
            # The process hung: try again in a new one.
        return {"result": f"more than {LIMIT:g} s", "file": self._garbled_file()}

    def close(self) -> int | None:
        """End the process, and return its exit code."""
        if self._process is None:
            return None
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            code = self._process.wait(timeout=2)  # it may end by itself
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._process = None
        return code

    def _start(self) -> subprocess.Popen[bytes]:
        self._starts += 1
        directory = self._scratch / str(self._starts)
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "XDG_CACHE_HOME": str(self._scratch / "cache"), "TMPDIR": str(self._scratch),
            "OPENBLAS_NUM_THREADS": "1",
        }  # fmt: skip
        stderr_path = self._scratch / "stderr.txt"  # libraries print warnings about every file
        with stderr_path.open("w") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, __file__, *self._flags.kinds, "--seed", str(self._flags.seed),
                 "--child", str(directory)],
                env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
            )  # fmt: skip
        line = self._read_line(self._process, START_TIMEOUT)
        if not line:
            self.close()
            sys.exit(f"the child process does not start: {stderr_path.read_text()[-2000:]}")
        self.complaints = json.loads(line)
        return self._process

    @staticmethod
    def _read_line(process: subprocess.Popen[bytes], timeout: float) -> bytes | None:
        """Return the next line; an empty one if the process ended, None after the timeout."""
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], timeout)
        return process.stdout.readline() if ready else None

    def _garbled_file(self) -> str:
        directory = self._scratch / str(self._starts) / "garbled"
        return max((str(p) for p in directory.rglob("*") if p.is_file()), default="", key=len)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the fuzzer as the flags say, and print a summary of each kind."""
    names = ("safetensors", "pth", "card", "jpeg", "png", "image", "tfrecord", "checkpoint",
             "config", "run")  # fmt: skip
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(names)}")
    parser.add_argument("--count", type=int, default=10_000, help="files per kind (default 10000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="number of the only file to read")
    parser.add_argument(
        "--keep", type=pathlib.Path, default=pathlib.Path("fuzz_findings"), metavar="DIR",
        help="directory to save findings in (default fuzz_findings)",
    )  # fmt: skip
    parser.add_argument("--child", type=pathlib.Path, help=argparse.SUPPRESS)
    flags = parser.parse_args(argv)
    flags.kinds = flags.kinds or list(names)
    unknown = [kind for kind in flags.kinds if kind not in names]
    if unknown:
        parser.error(f"no kind {unknown[0]!r}: expected any of {', '.join(names)}")
    if flags.child:
        serve(flags.child, flags.seed, flags.kinds)
        return 0
    with tempfile.TemporaryDirectory(prefix="convit-jax-fuzz-") as scratch:
        return int(sum(_fuzz(kind, pathlib.Path(scratch), flags) for kind in flags.kinds) > 0)


def _fuzz(kind: str, scratch: pathlib.Path, flags: argparse.Namespace) -> int:
    """Have the files of a kind read, and return the number of findings."""
    counts: collections.Counter[str] = collections.Counter()
    max_seconds = max_memory = 0.0
    flags = argparse.Namespace(**vars(flags) | {"kinds": [kind]})
    process = WorkerProcess(scratch / kind, flags)
    (scratch / kind).mkdir()
    try:
        for number in range(flags.count) if flags.only is None else (flags.only,):
            answer = process.read(kind, number)
            result = answer["result"]
            max_seconds = max(max_seconds, answer.get("seconds", LIMIT))
            max_memory = max(max_memory, answer.get("memory", 0))
            counts[result] += 1
            is_finding = result not in ("read", "refused")
            if (is_finding and counts[result] <= 20) or flags.only is not None:
                _save(kind, number, answer, flags.keep)
    finally:
        process.close()
    print("\n".join(process.complaints), end="\n" if process.complaints else "")
    print(
        f"{kind}: {counts.total():,} files, "
        + ", ".join(f"{count:,} {result}" for result, count in sorted(counts.items()))
        + f"; slowest {max_seconds:.2f} s, most memory {max_memory / 2**20:,.0f} MiB",
        flush=True,
    )
    return counts.total() - counts["read"] - counts["refused"] + len(process.complaints)


def _save(kind: str, number: int, answer: dict[str, Any], directory: pathlib.Path) -> None:
    """Copy the file, and write the result and the message beside it."""
    directory.mkdir(parents=True, exist_ok=True)
    source = pathlib.Path(answer["file"])
    if source.is_file():
        shutil.copy(source, directory / f"{kind}-{number}-{source.name}")
    text = f"{answer['result']}\n{answer.get('message', '')}\n"
    (directory / f"{kind}-{number}.txt").write_text(text, errors="backslashreplace")


if __name__ == "__main__":
    sys.exit(main())
