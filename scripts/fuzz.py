"""Fuzzing: reads files garbled at random as users' files are read.

    python scripts/fuzz.py                                  # 10,000 of each kind
    python scripts/fuzz.py jpeg png --count 300 --seed 1    # what CI does, of every kind
    python scripts/fuzz.py pth --only 4711                  # one of them again, kept in --keep

A garbled file must be read, or refused with `InputError` (an image: `BrokenImageError`) in one
sentence. Anything else is a finding, is kept in --keep, and makes the exit code 1: another
exception, a process that dies, code that a pickle runs (it would create a file), more than five
seconds of computing (or thirty of waiting), or more than `MEMORY` above what reading the whole
files takes.

File N of a kind is a function of (seed, kind, N). Files are read in a process of their own, which
is started anew where it dies or hangs.
"""

import argparse
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

import garbling  # noqa: E402  (its place is known only now)

LIMIT = 5.0  # seconds of computing that a file may take
PATIENCE = 6  # times as long by the clock, on a busy machine
MEMORY = 3 << 30  # bytes a file may take, in address space: the largest image allowed is 0.7 GB
STARTING = 120.0  # seconds until the process that reads must have started


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file: how sound ones are made, how they are garbled, and how they are read.

    Attributes:
        name: of the file that is garbled, its suffix included.
        sound: whole files, or where `inside` is set the content of that file of a directory.
        garble: (bytes, random numbers) → bytes.
        read: (path) → None; the path is the directory's where there is one.
        inside: for each of `sound`, a directory and the file in it; or empty.
    """

    name: str
    sound: Sequence[bytes]
    garble: garbling.Garbler
    read: Callable[[pathlib.Path], None]
    inside: Sequence[tuple[pathlib.Path, str]] = ()


def read_weights(path: pathlib.Path) -> None:
    """Opens weights and asks everything that commands ask of them, the model included."""
    from convit_jax.weights import open_weights  # noqa: PLC0415  (the parent does without)

    weights = open_weights(path)
    architecture = weights.architecture()
    weights.class_names()
    weights.likely_model()
    weights.preprocessing(architecture)
    weights.model()


def read_image(path: pathlib.Path) -> None:
    """Decodes an image, to a number of channels that its size decides."""
    from convit_jax.data.images.decoding import decode  # noqa: PLC0415

    content = path.read_bytes()
    channels = 1 + len(content) % 4
    pixels = decode(content, channels)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != channels:
        raise TypeError(f"decoded to {pixels.dtype} {pixels.shape}")


def read_tfrecord(path: pathlib.Path) -> None:
    """Opens a TFDS dataset and reads every record as training and as evaluation do."""
    from convit_jax.data import open_source  # noqa: PLC0415
    from convit_jax.data.reading import Row, RowReader  # noqa: PLC0415

    source = open_source(f"tfds:fuzzed:train:{path}")
    rows = [Row(index) for index in range(len(source))]
    out = np.empty((len(rows), 8, 8, 3), np.uint8)
    for seed in (None, 0):
        reader = RowReader(source, lambda pixels, *_: np.resize(pixels, (8, 8, 3)), (8, 8, 3), seed)
        read = reader.read(rows, out)
        if len(read.labels) != len(rows):
            raise TypeError("not every row is there")


def read_run(path: pathlib.Path) -> None:
    """Compares a run that is to go on with what its checkpoint says of it."""
    from etils import epath  # noqa: PLC0415

    from convit_jax.config import resolve  # noqa: PLC0415
    from convit_jax.training.resumption import check_same_run  # noqa: PLC0415

    check_same_run(epath.Path(path), resolve({}), ("a", "b", "c"), 100)


def make_kind(name: str, scratch: pathlib.Path) -> Kind:
    """A kind, with sound files made now."""
    if name in ("jpeg", "png", "image"):
        formats = ("WEBP", "GIF", "TIFF", "BMP", "PPM") if name == "image" else (name.upper(),)
        sound = [content for format_name in formats for content in _sound_images(format_name)]
        garble = {"jpeg": garbling.jpeg, "png": garbling.png, "image": garbling.bytewise}[name]
        return Kind(f"x.{name}", sound, garble, read_image)
    if name == "tfrecord":
        directory = _sound_tfds(scratch / "tfds")
        path = next(directory.rglob("*.tfrecord*"))
        return _inside(directory, [path], garbling.tfrecord, read_tfrecord)
    if name == "run":
        directory = _sound_run(scratch / "run")
        return _inside(directory, sorted(directory.rglob("metadata")), _text_or_bytes, read_run)
    weights = _sound_weights(scratch)
    if name == "checkpoint":
        directory = scratch / "checkpoint"
        paths = [path for path in sorted(directory.rglob("*")) if path.is_file()]
        return _inside(directory, paths, _text_or_bytes, read_weights)
    if name == "config":
        paths = [scratch / "hub" / "config.json"]
        return _inside(scratch / "hub", paths, garbling.json_text, read_weights)
    if name == "card":
        return Kind("x.safetensors", [weights["ours.safetensors"]], garbling.card, read_weights)
    suffix = f".{name}"
    sound = [content for file, content in weights.items() if file.endswith(suffix)]
    pth = garbling.torch_file(str(scratch / "canary"))
    return Kind(f"x{suffix}", sound, pth if name == "pth" else garbling.safetensors, read_weights)


def _inside(
    directory: pathlib.Path,
    paths: Sequence[pathlib.Path],
    garble: garbling.Garbler,
    read: Callable[[pathlib.Path], None],
) -> Kind:
    """A kind of which some files of a directory are garbled, one at a time."""
    places = [(directory, str(path.relative_to(directory))) for path in paths]
    return Kind("", [path.read_bytes() for path in paths], garble, read, places)


def _text_or_bytes(content: bytes, rng: random.Random) -> bytes:
    """A file of a checkpoint: some are JSON."""
    if content.startswith(b"{"):
        return garbling.json_text(content, rng)
    return garbling.bytewise(content, rng)


def _sound_run(directory: pathlib.Path) -> pathlib.Path:
    """What a checkpoint of a run says of it, without its state."""
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


def _sound_weights(scratch: pathlib.Path) -> dict[str, bytes]:
    """Weights of a tiny ConViT by file name; `checkpoint` and `hub` are made beside them."""
    import argparse as namespaces  # noqa: PLC0415  (as the released checkpoints hold one)

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
        "model": tensors, "optimizer": {}, "epoch": 3, "args": namespaces.Namespace(lr=1e-3),
    }  # fmt: skip
    torch.save(released, scratch / "released.pth")
    torch.save(tensors, scratch / "old.pth", _use_new_zipfile_serialization=False)
    ours = scratch / "ours.safetensors"
    checkpoint = scratch / "checkpoint"
    quiet = io.StringIO()
    stdout, sys.stdout = sys.stdout, quiet
    try:
        convert.main([str(plain), str(checkpoint)])
        convert.main([str(checkpoint), str(ours)])
    finally:
        sys.stdout = stdout
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


def _sound_images(format_name: str) -> list[bytes]:
    """Small pictures of several modes, with and without EXIF."""
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
            picture = (
                colours.convert("I").convert("I;16") if mode == "I;16" else colours.convert(mode)
            )
            buffer = io.BytesIO()
            picture.save(buffer, format_name, **options)
            out.append(buffer.getvalue())
    return out


def _sound_tfds(directory: pathlib.Path) -> pathlib.Path:
    """A TFDS dataset of ten small images in one TFRecord file."""
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


class Reading:
    """In the process that reads: the kinds, and one file after another."""

    def __init__(self, scratch: pathlib.Path, seed: int) -> None:
        scratch.mkdir()
        self._scratch, self._seed = scratch, seed
        self._kinds: dict[str, Kind] = {}
        self._target = scratch / "garbled"

    def warm_up(self, kind: str) -> list[str]:
        """Makes sound files and reads them, so that all is loaded that reading loads.

        Returns:
            What went wrong with those that should have been read.
        """
        (self._scratch / kind).mkdir()
        self._kinds[kind] = make_kind(kind, self._scratch / kind)
        complaints = []
        for number, content in enumerate(self._kinds[kind].sound):
            path, _ = self._written(kind, number, content)
            try:
                self._kinds[kind].read(path)
            except Exception as error:
                complaints.append(f"{kind}: sound file {number} is not read: {error!r}")
        return complaints

    def read(self, kind: str, number: int) -> dict[str, Any]:
        """Garbles and reads a file: how that ended."""
        from convit_jax.data.images.decoding import BrokenImageError  # noqa: PLC0415
        from convit_jax.errors import InputError  # noqa: PLC0415

        rng = random.Random(f"{self._seed} {kind} {number}")
        which = rng.randrange(len(self._kinds[kind].sound))
        content = self._kinds[kind].garble(self._kinds[kind].sound[which], rng)
        path, written = self._written(kind, which, content)
        _forget_peak()
        before, began, result, said = _memory("VmRSS"), time.process_time(), "read", ""
        try:
            self._kinds[kind].read(path)
        except (InputError, BrokenImageError) as error:
            result, said = "refused", str(error)
            if not said.strip() or "\n" in said.strip() or len(said) > 3000:
                result, said = "no sentence", repr(said[:3000])
        except Exception as error:
            result, said = type(error).__name__, traceback.format_exc(limit=-6)
        seconds, memory = time.process_time() - began, _memory("VmHWM") - before
        canary = self._scratch / kind / "canary"
        if canary.exists():
            canary.unlink()
            result = "CODE EXECUTED"
        return {"result": result, "said": said, "seconds": seconds, "memory": memory,
                "file": str(written)}  # fmt: skip

    def _written(self, kind: str, which: int, content: bytes) -> tuple[pathlib.Path, pathlib.Path]:
        """What is to be read, and the garbled file in it."""
        if self._target.is_dir():
            shutil.rmtree(self._target)
        self._target.unlink(missing_ok=True)
        inside = self._kinds[kind].inside
        if inside:
            directory, name = inside[which]
            shutil.copytree(directory, self._target)
            (self._target / name).write_bytes(content)
            return self._target, self._target / name
        self._target.mkdir()
        path = self._target / self._kinds[kind].name
        path.write_bytes(content)
        return path, path


def _memory(name: str) -> int:
    """A figure of this process in bytes: VmRSS, VmHWM (its peak) or VmSize."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(status.split(f"{name}:")[1].split()[0])


def _forget_peak() -> None:
    gc.collect()
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def serve(scratch: pathlib.Path, seed: int, kinds: Sequence[str]) -> None:
    """In the process that reads: "KIND NUMBER" lines in, a line of JSON for each out."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    reading = Reading(scratch, seed)
    complaints = [complaint for kind in kinds for complaint in reading.warm_up(kind)]
    gc.collect()
    gc.freeze()  # what is there now stays; looking through it takes a third of a second a file
    most = _memory("VmSize") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    answers.write(json.dumps(complaints) + "\n")
    answers.flush()
    for line in sys.stdin:
        kind, number = line.split()
        answers.write(json.dumps(reading.read(kind, int(number))) + "\n")
        answers.flush()


class Reader:
    """The process that reads, seen from outside."""

    def __init__(self, scratch: pathlib.Path, flags: argparse.Namespace) -> None:
        self._scratch, self._flags, self._starts = scratch, flags, 0
        self.complaints: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None

    def read(self, kind: str, number: int) -> dict[str, Any]:
        """Has a file read; where the process hangs twice, or dies, that is the answer."""
        for _attempt in (1, 2):
            process = self._process or self._start()
            process.stdin.write(f"{kind} {number}\n".encode())
            process.stdin.flush()
            line = self._line(PATIENCE * LIMIT)
            if line:
                answer = json.loads(line)
                if answer["seconds"] <= LIMIT:
                    return answer
            code = self.close()
            if line is not None and not line:
                said = (self._scratch / "said.txt").read_text(errors="replace")[-2000:]
                result = f"the process died, code {code}"
                return {"result": result, "said": said, "file": self._garbled(kind)}
            # Once more, in a new process.
        return {"result": f"more than {LIMIT:g} s", "file": self._garbled(kind)}

    def close(self) -> int | None:
        """Ends the process."""
        if self._process is None:
            return None
        self._process.stdin.close()
        try:
            code = self._process.wait(timeout=2)  # where it has ended by itself
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
        said = self._scratch / "said.txt"  # libraries chatter, file after file
        with said.open("w") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, __file__, *self._flags.kinds, "--seed", str(self._flags.seed),
                 "--child", str(directory)],
                env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
            )  # fmt: skip
        line = self._line(STARTING)
        if not line:
            self.close()
            sys.exit(f"the process that reads does not start: {said.read_text()[-2000:]}")
        self.complaints = json.loads(line)
        return self._process

    def _line(self, seconds: float) -> bytes | None:
        """The next line; empty where the process ended, None where it says nothing in time."""
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        return self._process.stdout.readline() if ready else None

    def _garbled(self, kind: str) -> str:
        directory = self._scratch / str(self._starts) / "garbled"
        return max((str(p) for p in directory.rglob("*") if p.is_file()), default="", key=len)


def main(argv: Sequence[str] | None = None) -> int:
    """Fuzzes as the flags say and prints a table of what came of it."""
    names = ("safetensors", "pth", "card", "jpeg", "png", "image", "tfrecord", "checkpoint",
             "config", "run")  # fmt: skip
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(names)}")
    parser.add_argument("--count", type=int, default=10_000, help="files a kind (default 10000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this file alone")
    parser.add_argument(
        "--keep", type=pathlib.Path, default=pathlib.Path("fuzz_findings"), metavar="DIR",
        help="where files are kept that something is wrong with (default fuzz_findings)",
    )  # fmt: skip
    parser.add_argument("--child", type=pathlib.Path, help=argparse.SUPPRESS)
    flags = parser.parse_args(argv)
    flags.kinds = flags.kinds or list(names)
    unknown = [kind for kind in flags.kinds if kind not in names]
    if unknown:
        parser.error(f"no kind {unknown[0]!r}: expected some of {', '.join(names)}")
    if flags.child:
        serve(flags.child, flags.seed, flags.kinds)
        return 0
    with tempfile.TemporaryDirectory(prefix="convit-jax-fuzz-") as scratch:
        return int(sum(_fuzz(kind, pathlib.Path(scratch), flags) for kind in flags.kinds) > 0)


def _fuzz(kind: str, scratch: pathlib.Path, flags: argparse.Namespace) -> int:
    """Has the files of a kind read; returns how many something is wrong with."""
    counts: dict[str, int] = {}
    slowest = largest = 0.0
    flags = argparse.Namespace(**vars(flags) | {"kinds": [kind]})
    reader = Reader(scratch / kind, flags)
    (scratch / kind).mkdir()
    try:
        for number in range(flags.count) if flags.only is None else (flags.only,):
            answer = reader.read(kind, number)
            result = answer["result"]
            slowest = max(slowest, answer.get("seconds", LIMIT))
            largest = max(largest, answer.get("memory", 0))
            counts[result] = counts.get(result, 0) + 1
            wrong = result not in ("read", "refused")
            if (wrong and counts[result] <= 20) or flags.only is not None:
                _keep(kind, number, answer, flags.keep)
    finally:
        reader.close()
    wrong = sum(count for result, count in counts.items() if result not in ("read", "refused"))
    print("\n".join(reader.complaints), end="\n" if reader.complaints else "")
    print(
        f"{kind}: {sum(counts.values()):,} files, "
        + ", ".join(f"{count:,} {result}" for result, count in sorted(counts.items()))
        + f"; slowest {slowest:.2f} s, most memory {largest / 2**20:,.0f} MiB",
        flush=True,
    )
    return wrong + len(reader.complaints)


def _keep(kind: str, number: int, answer: dict[str, Any], keep: pathlib.Path) -> None:
    """Copies the file and what was said of it."""
    keep.mkdir(parents=True, exist_ok=True)
    source = pathlib.Path(answer["file"])
    if source.is_file():
        shutil.copy(source, keep / f"{kind}-{number}-{source.name}")
    said = f"{answer['result']}\n{answer.get('said', '')}\n"
    (keep / f"{kind}-{number}.txt").write_text(said, errors="backslashreplace")


if __name__ == "__main__":
    sys.exit(main())
