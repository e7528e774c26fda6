"""Every pair of the configuration's values: trains two steps and evaluates, or is refused.

    python scripts/try_pairs.py                          # every pair, on one device and on four
    python scripts/try_pairs.py --devices 4 --first 3    # the first few runs: what CI does
    python scripts/try_pairs.py --list                   # the runs, and none is made

Two keys that work each by itself may fail together. `VALUES` has some values of most keys of data,
recipe, optimizer and model; a few dozen runs hold every pair of them, each run a tiny model on tiny
images of one to four channels. A run must end with finite numbers, or be refused in one
sentence (`InputError`); anything else is a finding, and the exit code is 1.

A refusal or a failure would hide the other pairs of its run. So it is narrowed down, by setting
keys back to their defaults, to the few values that are to blame; no later run holds these together,
and the pairs that are not to blame are covered by other runs.
"""

import argparse
import contextlib
import dataclasses
import io
import itertools
import json
import math
import os
import pathlib
import random
import select
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from convit_jax.config import Config, resolve  # noqa: E402  (the checkout comes first)
from convit_jax.errors import InputError, first_line  # noqa: E402

Values = dict[str, Any]
Pair = frozenset[tuple[str, int]]  # of (key, number of its value)

# The first value of each key is the one it is set back to. `None` leaves a key at its default;
# "source" stands for data.train, "evaluation" for data.eval or data.holdout.
VALUES: dict[str, tuple[Any, ...]] = {
    "source": ("folder", "digits"),
    "evaluation": ("own", "holdout"),
    "data.fraction": (1.0, 0.5),
    "data.fraction_choice": ("first", "random"),
    "data.classes": (0, 2),
    "data.image_size": ((16,), (16, 24)),
    "data.eval_crop": (0.875, 1.0),
    "data.max_broken": (0.0, 0.1),
    "data.num_workers": (0, 1),
    "augment.repeats": (1, 3),
    "augment.crop": ("none", "pad", "random_resized"),
    "augment.flip": (0.0, 0.5),
    "augment.randaugment": ("", "rand-m9-mstd0.5-inc1"),
    "augment.rotate": (0.0, 10.0),
    "augment.erase": (0.0, 0.5),
    "augment.mixup": (0.0, 0.8),
    "augment.cutmix": (0.0, 1.0),
    "augment.mix_prob": (1.0, 0.5),
    "optimizer.warmup": ("0 steps", "1 steps"),
    "optimizer.weight_decay": (0.05, 0.0),
    "optimizer.frozen": ((), (r"blocks\.0\..*",)),
    "optimizer.layer_decay": (1.0, 0.75),
    "optimizer.schedule_every": ("step", "epoch"),
    "optimizer.schedule_lag": (0, 1),
    "optimizer.clip_norm": (0.0, 1.0),
    "optimizer.accumulate": (1, 2),
    "mesh.fsdp": (1, 2),
    "label_smoothing": (0.1, 0.0),
    "ema_decay": (0.0, 0.9),
    "attention": ("auto", "xla", "pallas"),
    "attention_images": (0, 4),
    "keep_budget": (False, True),
    "checkpoint.keep_best": (1, 0),
    "model.in_channels": (3, 1, 2, 4),
    "model.gpsa_layers": (1, 0, 2),
    "model.qkv_bias": (None, True),
    "model.use_gating": (None, False),
    "model.conv_init": (None, False),
    "model.use_pos_embed": (None, False),
    "model.mlp_ratio": (None, 1.5),
    "model.drop_rate": (None, 0.1),
    "model.drop_path_rate": (None, 0.1),
    "model.dtype": (None, "bfloat16"),
    "model.remat": (None, True),
}
# What every run has besides.
BASE = {
    "model": {"name": "convit_tiny", "num_heads": 4, "head_dim": 4, "depth": 2, "patch_size": 8},
    "train_for": "2 steps", "batch_size": 16, "eval_batch_size": 16, "log_every": "1 steps",
}  # fmt: skip
SECONDS = 240  # that a run may take


def config_values(row: Values, folders: pathlib.Path) -> dict[str, Any]:
    """A row of values by key as the nested mapping that `resolve` takes."""
    values: dict[str, Any] = {k: dict(v) if isinstance(v, dict) else v for k, v in BASE.items()}
    data = values.setdefault("data", {})
    channels = row["model.in_channels"]
    data |= {"mean": (0.5,) * channels, "std": (0.25,) * channels}
    folder = f"folder:{folders}/{channels}"
    data["train"] = f"{folder}/train" if row["source"] == "folder" else "digits:train"
    data["eval"] = f"{folder}/val" if row["source"] == "folder" else "digits:test"
    if row["evaluation"] == "holdout":
        data |= {"eval": "", "holdout": 0.25}
    for name, value in row.items():
        if value is not None and name not in ("source", "evaluation"):
            section, _, last = name.rpartition(".")
            (values.setdefault(section, {}) if section else values)[last] = value
    return values


def make_folders(root: pathlib.Path) -> None:
    """Three classes of PNG files of one to four channels, to train and to evaluate on."""
    rng = np.random.default_rng(0)
    for channels, mode in ((1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")):
        for part, count in (("train", 40), ("val", 6)):
            for label in range(3):
                directory = root / str(channels) / part / f"class_{label}"
                directory.mkdir(parents=True)
                for i in range(count):
                    shape = ((40, 56), (12, 20))[i % 2]  # to be scaled down, and up
                    shape = shape if mode == "L" else (*shape, channels)
                    pixels = rng.integers(60 * label, 60 * label + 120, shape).astype(np.uint8)
                    Image.fromarray(pixels, mode).save(directory / f"{i:02}.png")


class Pairs:
    """The pairs of values still to be held by a run, and the sets of values to be avoided."""

    def __init__(
        self, values: dict[str, tuple[Any, ...]], is_valid: Callable[[Values], bool], seed: int
    ) -> None:
        self._values, self._is_valid = values, is_valid
        self._random = random.Random(seed)
        self.avoided: list[Pair] = []
        self._pool: list[dict[str, int]] = []
        self.uncovered = {
            frozenset(((a, i), (b, j)))
            for a, b in itertools.combinations(values, 2)
            for i in range(len(values[a]))
            for j in range(len(values[b]))
        }
        self.total = len(self.uncovered)
        self._walk(steps=40 * len(values))

    def impossible(self) -> list[Pair]:
        """The uncovered pairs that no valid row has, however the other keys are set."""
        return sorted((pair for pair in self.uncovered if self._row_with(pair) is None), key=sorted)

    def rows(self) -> Iterator[dict[str, int]]:
        """Rows that hold more and more pairs, until every possible one is covered."""
        while True:
            self._pool = [row for row in self._pool if self._allowed(row)]
            some = self._random.sample(self._pool, min(100, len(self._pool)))
            best = max(some, key=self._gain, default=None)
            if best is None or not self._gain(best):
                wanted = (self._row_with(pair) for pair in sorted(self.uncovered, key=sorted))
                best = next((row for row in wanted if row), None)
                if best is None:
                    return
            yield self._improved(best)

    def cover(self, row: dict[str, int]) -> None:
        """Takes away the pairs that a run of this row has shown to work."""
        self.uncovered -= _pairs_of(row)

    def avoid(self, blamed: Pair) -> None:
        """Has no more rows hold all of these values; a pair that includes them is done with."""
        self.avoided.append(blamed)
        self.uncovered = {pair for pair in self.uncovered if not blamed <= pair}

    def named(self, row: dict[str, int]) -> Values:
        """The values that a row of numbers stands for."""
        return {name: self._values[name][number] for name, number in row.items()}

    def _gain(self, row: dict[str, int]) -> int:
        return len(self.uncovered & _pairs_of(row))

    def _allowed(self, row: dict[str, int]) -> bool:
        return not any(blamed <= row.items() for blamed in self.avoided)

    def _valid(self, row: dict[str, int]) -> bool:
        return self._allowed(row) and self._is_valid(self.named(row))

    def _walk(self, steps: int) -> None:
        """Valid rows at random: one value after another is changed where the row stays valid."""
        row = dict.fromkeys(self._values, 0)
        for _ in range(steps):
            name = self._random.choice(list(row))
            other = row | {name: self._random.randrange(len(self._values[name]))}
            if self._valid(other):
                row = other
                self._pool.append(row)

    def _row_with(self, pair: Pair) -> dict[str, int] | None:
        """A valid row that holds a pair: a row of the pool, changed in up to one more place."""
        rows = [
            dict.fromkeys(self._values, 0),
            *self._random.sample(self._pool, min(60, len(self._pool))),
        ]
        with_pair = [row | dict(pair) for row in rows]
        for row in with_pair:
            if self._valid(row):
                return row
        names = [name for name in self._values if name not in dict(pair)]
        for row in with_pair[:3]:
            for name in names:
                for number in range(len(self._values[name])):
                    if self._valid(row | {name: number}):
                        return row | {name: number}
        return None

    def _improved(self, row: dict[str, int]) -> dict[str, int]:
        """A row with single values exchanged as long as that covers more pairs."""
        gain, names = self._gain(row), list(row)
        self._random.shuffle(names)
        for name in names * 2:
            for number in range(len(self._values[name])):
                other = row | {name: number}
                if self._gain(other) > gain and self._valid(other):
                    row, gain = other, self._gain(other)
        return row


def _pairs_of(row: dict[str, int]) -> set[Pair]:
    return {frozenset(pair) for pair in itertools.combinations(row.items(), 2)}


def is_valid(row: Values) -> bool:
    """Whether a row resolves: what needs no data and no devices to be refused."""
    try:
        resolve(config_values(row, pathlib.Path("/nowhere")))
    except InputError:
        return False
    return True


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended: trained, refused or failed; what it said; after how many seconds."""

    result: str
    said: str
    seconds: float


class Runner:
    """A process with so many devices that makes one run after another; a new one where it dies."""

    def __init__(self, devices: int, folders: pathlib.Path) -> None:
        self._devices, self._folders = devices, folders
        self._process: subprocess.Popen[str] | None = None

    def run(self, row: Values, *, prepare_only: bool = False) -> Outcome:
        """Makes a run, or only puts it together: most refusals come then, and it takes no time."""
        process = self._process or self._start()
        process.stdin.write(json.dumps([row, prepare_only]) + "\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], SECONDS)
        line = process.stdout.readline() if ready else ""
        if not line:
            self.close()
            why = f"the process died with code {process.returncode}" if ready else "it hangs"
            return Outcome("failed", why, SECONDS)
        return Outcome(**json.loads(line))

    def close(self) -> None:
        """Ends the process."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _start(self) -> subprocess.Popen[str]:
        scratch = self._folders.parent
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={self._devices}",
            "TFDS_DATA_DIR": f"{scratch}/tfds", "XDG_CACHE_HOME": f"{scratch}/cache",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_COMPILATION_CACHE_DIR": f"{scratch}/compiled",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        }  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--child", str(self._folders)],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        return self._process


def serve(folders: pathlib.Path) -> None:
    """In a runner's process: rows from standard input, outcomes to standard output."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        row, prepare_only = json.loads(line)
        row = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
        began = time.monotonic()
        try:
            config = resolve(config_values(row, folders))
            result, said = "trained", prepare(config) if prepare_only else train(config)
        except InputError as error:
            result, said = "refused", str(error)
            if "\n" in said.strip():
                result = "failed"  # a refusal is a sentence
        except Exception as error:
            summary = f"{type(error).__name__}: {first_line(error)}"
            result, said = "failed", f"{traceback.format_exc()}\n{summary}"
        answers.write(json.dumps(vars(Outcome(result, said, time.monotonic() - began))) + "\n")
        answers.flush()


def prepare(config: Config) -> str:
    """Opens the data and puts the experiment together, as training begins; trains nothing."""
    from convit_jax.distributed.mesh import create_mesh  # noqa: PLC0415
    from convit_jax.training import make_experiment  # noqa: PLC0415  (as in `train`)
    from convit_jax.training.examples import open_training_data  # noqa: PLC0415
    from convit_jax.training.placement import place  # noqa: PLC0415

    examples, _ = open_training_data(config)
    mesh = create_mesh(config.mesh.fsdp)
    experiment = make_experiment(
        config, num_examples=len(examples), num_classes=len(examples.class_names), mesh=mesh
    )
    place(experiment, mesh)
    return "nothing"


def train(config: Config) -> str:
    """Two steps, an evaluation, and the evaluation of what was saved by the evaluate command.

    Raises:
        Exception: whatever goes wrong, or a number that is not finite.
    """
    # Imported here: the process that chooses the rows does without.
    import jax  # noqa: PLC0415

    from convit_jax import evaluate  # noqa: PLC0415
    from convit_jax.training import loop  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as scratch:
        loop.train(config, f"{scratch}/run")
        lines = pathlib.Path(scratch, "run", "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        numbers = {k: v for record in records for k, v in record.items()}
        bad = sorted(k for k, v in numbers.items() if not math.isfinite(v))
        if bad or not {"train/loss", "eval/loss"} <= numbers.keys():
            raise ArithmeticError(f"not finite, or not there: {bad}, of {sorted(numbers)}")
        if not config.data.eval or config.data.classes or jax.device_count() > 1:
            return f"loss {numbers['train/loss']:.3f}"
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            flags = ["--weights", f"{scratch}/run", "--data", config.data.eval, "--json"]
            evaluate.main(flags)
        top1, inside = json.loads(printed.getvalue())["top1"], numbers["eval/accuracy"]
        # Of bfloat16 and float32 some images may be told apart otherwise.
        allowed = 0.0 if config.model.dtype is None else 0.3
        if abs(top1 - inside) > allowed + 1e-6:
            raise ArithmeticError(f"evaluate says {top1}, training {inside}")
        return f"loss {numbers['train/loss']:.3f}, top-1 {top1:.2f}"


def to_blame(
    row: dict[str, int], outcome: Outcome, run: Callable[[dict[str, int]], Outcome]
) -> Pair:
    """The few values that make a run end as it did: no other can be set back to its default."""
    wanted = _kind(outcome)
    blamed = {name: number for name, number in row.items() if number}
    defaults = dict.fromkeys(row, 0)

    def still(kept: dict[str, int]) -> bool:
        return _kind(run(defaults | kept)) == wanted

    size = max(len(blamed) // 2, 1)
    while True:
        names = list(blamed)
        for first in range(0, len(names), size):
            away = names[first : first + size]
            kept = {name: number for name, number in blamed.items() if name not in away}
            if still(kept):
                blamed = kept
        if size == 1:
            return frozenset(blamed.items())
        size //= 2


def _kind(outcome: Outcome) -> str:
    """What tells endings apart: a refusal's beginning, an error's type."""
    if outcome.result == "refused":
        return " ".join(outcome.said.split()[:1])
    last = outcome.said.strip().splitlines()[-1] if outcome.said else ""
    return f"{outcome.result} {last.split(':')[0]}"


def try_all(devices: int, folders: pathlib.Path, flags: argparse.Namespace) -> int:
    """Runs until every pair is covered; returns the number of findings."""
    pairs, runner, findings, runs = (
        Pairs(VALUES, is_valid, flags.seed),
        Runner(devices, folders),
        0,
        0,
    )
    impossible = pairs.impossible()
    for pair in impossible:
        print(f"refused before anything is read: {_shown(pairs, pair)}")
        pairs.uncovered.discard(pair)
    try:
        for row in pairs.rows():
            if flags.first and runs == flags.first:
                break
            runs += 1
            outcome = (
                Outcome("trained", "not run", 0) if flags.list else runner.run(pairs.named(row))
            )
            before = len(pairs.uncovered)
            if outcome.result == "trained":
                pairs.cover(row)
                print(
                    f"{devices} devices, run {runs}: {outcome.said}, {outcome.seconds:.0f} s, "
                    f"{before - len(pairs.uncovered)} new pairs, {len(pairs.uncovered)} to go",
                    flush=True,
                )
                if flags.list:
                    print(json.dumps(pairs.named(row)))
                continue
            early = _kind(runner.run(pairs.named(row), prepare_only=True)) == _kind(outcome)

            def again(other: dict[str, int], early: bool = early) -> Outcome:
                return runner.run(pairs.named(other), prepare_only=early)

            blamed = to_blame(row, outcome, again)
            pairs.avoid(blamed)
            last = outcome.said.strip().splitlines()[-1]
            print(
                f"{devices} devices, run {runs}: {outcome.result}, {_shown(pairs, blamed)}: {last}"
            )
            if outcome.result == "failed":
                findings += 1
                print(f"{outcome.said}\nthe whole run: {json.dumps(pairs.named(row))}", flush=True)
    finally:
        runner.close()
    print(
        f"{devices} devices: {pairs.total} pairs, {runs} runs, {len(impossible)} pairs refused at "
        f"once, {len(pairs.avoided)} sets of values refused or failed, {findings} findings, "
        f"{len(pairs.uncovered)} pairs left"
    )
    return findings


def _shown(pairs: Pairs, values: Iterable[tuple[str, int]]) -> str:
    return ", ".join(
        f"{name}={value!r}" for name, value in pairs.named(dict(sorted(values))).items()
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Makes the runs, or lists them, as the flags say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 4], help="default: 1 4")
    parser.add_argument("--first", type=int, default=0, help="only so many runs; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="decides the runs")
    parser.add_argument("--list", action="store_true", help="print the runs and make none")
    parser.add_argument("--child", type=pathlib.Path, help=argparse.SUPPRESS)
    flags = parser.parse_args(argv)
    if flags.child:
        serve(flags.child)
        return 0
    with tempfile.TemporaryDirectory(prefix="convit-jax-pairs-") as scratch:
        folders = pathlib.Path(scratch, "images")
        if not flags.list:
            make_folders(folders)
        return int(sum(try_all(devices, folders, flags) for devices in flags.devices) > 0)


if __name__ == "__main__":
    sys.exit(main())
