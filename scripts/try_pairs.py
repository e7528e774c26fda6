"""Pairwise testing of the configuration: train with every pair of values for two steps.

    python scripts/try_pairs.py                          # every pair, on one device and on four
    python scripts/try_pairs.py --devices 4 --first 3    # only the first runs, as in CI
    python scripts/try_pairs.py --list                   # list the runs without training

Two keys that work alone may fail together. `VALUES` has a few values for most keys of data, recipe,
optimizer and model; a few dozen runs cover all pairs of them. Each run trains a tiny model on tiny
images of one to four channels and evaluates it. It must end with finite numbers, or be refused in
one sentence (`InputError`); anything else is a finding, and the exit code is 1.

A refusal or failure would hide the other pairs of its run. So it is narrowed down to the few values
that cause it, by setting keys back to their defaults. No later run combines these values, and the
other pairs are covered by other runs.
"""

import argparse
import contextlib
import copy
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
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from convit_jax.config import Config, resolve  # noqa: E402  (the checkout comes first)
from convit_jax.errors import InputError, first_line  # noqa: E402

Values = dict[str, Any]  # by key
Row = dict[str, int]  # a run: the index of each key's value in `VALUES`
Combination = frozenset[tuple[str, int]]  # some of a row's items

# The first value of each key is its default here. `None` leaves a key at the config's default;
# "source" stands for data.train, "evaluation" for data.eval or data.holdout.
VALUES: dict[str, tuple[Any, ...]] = {
    "source": ("folder", "digits"),
    "evaluation": ("own", "holdout"),
    "data.fraction": (1.0, 0.5, 0.1),  # a tenth is less than a batch
    "data.fraction_choice": ("first", "random"),
    "data.classes": (0, 2),
    "data.image_size": ((16,), (16, 24)),
    "data.eval_crop": (0.875, 1.0),
    "data.max_broken": (0.0, 0.1),
    "data.num_workers": (0, 1),
    "augment.repeats": (1, 3),
    "augment.crop": ("none", "pad", "random_resized", "simple"),
    "augment.flip": (0.0, 0.5),
    "augment.randaugment": ("", "rand-m9-mstd0.5-inc1"),
    "augment.three_augment": (False, True),
    "augment.colour_jitter": (0.0, 0.3),
    "augment.rotate": (0.0, 10.0),
    "augment.erase": (0.0, 0.5),
    "augment.mixup": (0.0, 0.8),
    "augment.cutmix": (0.0, 1.0),
    "augment.mix_prob": (1.0, 0.5),
    "augment.mix_group": (0, 4),
    "optimizer.name": ("adamw", "lamb", "muon"),
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
    "loss": ("softmax", "binary"),
    "balance_classes": (False, True),
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
    "model.positional_attention": (None, "vanilla"),
    "model.init": (None, "convolutional", "mimetic", "impulse"),
    "model.use_pos_embed": (None, False),
    "model.mlp_ratio": (None, 1.5),
    "model.drop_rate": (None, 0.1),
    "model.drop_path_rate": (None, 0.1),
    "model.dtype": (None, "bfloat16"),
    "model.remat": (None, True),
}
# Values that all runs share.
BASE: Values = {
    "model": {"name": "convit_tiny", "num_heads": 4, "head_dim": 4, "depth": 2, "patch_size": 8},
    "train_for": "2 steps", "batch_size": 16, "eval_batch_size": 16, "log_every": "1 steps",
}  # fmt: skip
TIMEOUT = 240  # seconds per run


def nested_config(values: Values, folders: pathlib.Path) -> dict[str, Any]:
    """Return values by key as the nested mapping that `resolve` takes."""
    config = copy.deepcopy(BASE)
    data = config.setdefault("data", {})
    channels = values["model.in_channels"]
    data |= {"mean": (0.5,) * channels, "std": (0.25,) * channels}
    folder = f"folder:{folders}/{channels}"
    data["train"] = f"{folder}/train" if values["source"] == "folder" else "digits:train"
    data["eval"] = f"{folder}/val" if values["source"] == "folder" else "digits:test"
    if values["evaluation"] == "holdout":
        data |= {"eval": "", "holdout": 0.25}
    for key, value in values.items():
        if value is not None and key not in ("source", "evaluation"):
            section, _, name = key.rpartition(".")
            (config.setdefault(section, {}) if section else config)[name] = value
    return config


def make_folders(root: pathlib.Path) -> None:
    """Write PNG files of one to four channels in three classes, for training and evaluation."""
    rng = np.random.default_rng(0)
    for channels, mode in ((1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")):
        for split, num_images in (("train", 40), ("val", 6)):
            for label in range(3):
                directory = root / str(channels) / split / f"class_{label}"
                directory.mkdir(parents=True)
                for i in range(num_images):
                    shape = ((40, 56), (12, 20))[i % 2]  # larger and smaller than the model's input
                    shape = shape if mode == "L" else (*shape, channels)
                    pixels = rng.integers(60 * label, 60 * label + 120, shape).astype(np.uint8)
                    Image.fromarray(pixels, mode).save(directory / f"{i:02}.png")


class Pairs:
    """Pairs of values not covered by a run yet, and combinations of values to avoid."""

    def __init__(
        self, values: dict[str, tuple[Any, ...]], is_valid: Callable[[Values], bool], seed: int
    ) -> None:
        self._choices, self._is_valid = values, is_valid
        self._random = random.Random(seed)
        self.avoided: list[Combination] = []
        self._pool: list[Row] = []
        self.uncovered: set[Combination] = {
            frozenset(((a, i), (b, j)))
            for a, b in itertools.combinations(values, 2)
            for i in range(len(values[a]))
            for j in range(len(values[b]))
        }
        self.total = len(self.uncovered)
        self._fill_pool(steps=40 * len(values))

    def impossible(self) -> list[Combination]:
        """Return the uncovered pairs for which no valid row was found."""
        return sorted((pair for pair in self.uncovered if self._row_with(pair) is None), key=sorted)

    def rows(self) -> Iterator[Row]:
        """Yield rows until every possible pair is covered; call `cover` or `avoid` after each."""
        while True:
            self._pool = [row for row in self._pool if self._is_allowed(row)]
            candidates = self._random.sample(self._pool, min(100, len(self._pool)))
            best = max(candidates, key=self._num_new_pairs, default=None)
            if best is None or not self._num_new_pairs(best):
                rows = (self._row_with(pair) for pair in sorted(self.uncovered, key=sorted))
                best = next((row for row in rows if row), None)
                if best is None:
                    return
            yield self._improve(best)

    def cover(self, row: Row) -> None:
        """Mark the pairs of a row as covered: its run has worked."""
        self.uncovered -= _pairs_of(row)

    def avoid(self, combination: Combination) -> None:
        """Yield no more rows with these values, and drop the pairs that include all of them."""
        self.avoided.append(combination)
        self.uncovered = {pair for pair in self.uncovered if not combination <= pair}

    def values(self, row: Row) -> Values:
        """Return the values of a row by key."""
        return {key: self._choices[key][index] for key, index in row.items()}

    def _num_new_pairs(self, row: Row) -> int:
        return len(self.uncovered & _pairs_of(row))

    def _is_allowed(self, row: Row) -> bool:
        return not any(combination <= row.items() for combination in self.avoided)

    def _is_valid_row(self, row: Row) -> bool:
        return self._is_allowed(row) and self._is_valid(self.values(row))

    def _fill_pool(self, steps: int) -> None:
        """Add valid rows of a random walk to the pool, which changes one value in each step."""
        row = dict.fromkeys(self._choices, 0)
        for _ in range(steps):
            key = self._random.choice(list(row))
            changed = row | {key: self._random.randrange(len(self._choices[key]))}
            if self._is_valid_row(changed):
                row = changed
                self._pool.append(row)

    def _row_with(self, pair: Combination) -> Row | None:
        """Return a valid row with a pair: a row of the pool with up to one more value changed."""
        rows = [
            dict.fromkeys(self._choices, 0),
            *self._random.sample(self._pool, min(60, len(self._pool))),
        ]
        with_pair = [row | dict(pair) for row in rows]
        for row in with_pair:
            if self._is_valid_row(row):
                return row
        other_keys = [key for key in self._choices if key not in dict(pair)]
        for row in with_pair[:3]:
            for key in other_keys:
                for index in range(len(self._choices[key])):
                    if self._is_valid_row(row | {key: index}):
                        return row | {key: index}
        return None

    def _improve(self, row: Row) -> Row:
        """Return a row with single values changed as long as that covers more pairs."""
        best, keys = self._num_new_pairs(row), list(row)
        self._random.shuffle(keys)
        for key in keys * 2:
            for index in range(len(self._choices[key])):
                changed = row | {key: index}
                if self._num_new_pairs(changed) > best and self._is_valid_row(changed):
                    row, best = changed, self._num_new_pairs(changed)
        return row


def _pairs_of(row: Row) -> set[Combination]:
    return {frozenset(pair) for pair in itertools.combinations(row.items(), 2)}


def is_valid(values: Values) -> bool:
    """Return whether values resolve to a config; checks that need data or devices come later."""
    try:
        resolve(nested_config(values, pathlib.Path("/nowhere")))
    except InputError:
        return False
    return True


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        result: "trained", "refused" or "failed".
        message: a summary, the refusal, or the traceback.
        seconds: duration.
    """

    result: str
    message: str
    seconds: float


class Runner:
    """Runs configurations one after another in a subprocess, which is restarted if it dies."""

    def __init__(self, devices: int, folders: pathlib.Path) -> None:
        self._devices, self._folders = devices, folders
        self._process: subprocess.Popen[str] | None = None

    def run(self, values: Values, *, prepare_only: bool = False) -> Outcome:
        """Train with these values, or only prepare it, which is quick and finds most refusals."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([values, prepare_only]) + "\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], TIMEOUT)
        line = process.stdout.readline() if ready else ""
        if not line:
            self.close()
            reason = f"the process died with code {process.returncode}" if ready else "it hangs"
            return Outcome("failed", reason, TIMEOUT)
        return Outcome(**json.loads(line))

    def close(self) -> None:
        """Kill the process."""
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
    """Serve a `Runner`: read values from standard input, write outcomes to standard output."""
    outcomes = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries' own output must not mix with the outcomes
    for line in sys.stdin:
        values, prepare_only = json.loads(line)
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        start = time.monotonic()
        try:
            config = resolve(nested_config(values, folders))
            result, message = "trained", prepare(config) if prepare_only else train(config)
        except InputError as error:
            result, message = "refused", str(error)
            if "\n" in message.strip():
                result = "failed"  # a refusal must be a single sentence
        except Exception as error:
            summary = f"{type(error).__name__}: {first_line(error)}"
            result, message = "failed", f"{traceback.format_exc()}\n{summary}"
        outcomes.write(json.dumps(vars(Outcome(result, message, time.monotonic() - start))) + "\n")
        outcomes.flush()


def prepare(config: Config) -> str:
    """Open the data and make the experiment, as at the start of training, without training."""
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
    return "prepared"


def train(config: Config) -> str:
    """Train two steps, evaluate, and evaluate the checkpoint with the evaluate command.

    Raises:
        Exception: anything that goes wrong, or a number that is not finite.
    """
    # Imported here because the process that chooses the rows does not need them.
    import jax  # noqa: PLC0415

    from convit_jax import evaluate  # noqa: PLC0415
    from convit_jax.training import loop  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as scratch:
        loop.train(config, f"{scratch}/run")
        lines = pathlib.Path(scratch, "run", "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        numbers = {k: v for record in records for k, v in record.items()}
        not_finite = sorted(k for k, v in numbers.items() if not math.isfinite(v))
        if not_finite or not {"train/loss", "eval/loss"} <= numbers.keys():
            raise ArithmeticError(f"not finite: {not_finite}, or missing from {sorted(numbers)}")
        if not config.data.eval or config.data.classes or jax.device_count() > 1:
            return f"loss {numbers['train/loss']:.3f}"
        with contextlib.redirect_stdout(io.StringIO()) as output:
            flags = ["--weights", f"{scratch}/run", "--data", config.data.eval, "--json"]
            evaluate.main(flags)
        top1, in_training = json.loads(output.getvalue())["top1"], numbers["eval/accuracy"]
        # The command computes in float32: with bfloat16 some images may be classified differently.
        tolerance = 0.0 if config.model.dtype is None else 0.3
        if abs(top1 - in_training) > tolerance + 1e-6:
            raise ArithmeticError(f"top-1 is {top1} by evaluate, {in_training} in training")
        return f"loss {numbers['train/loss']:.3f}, top-1 {top1:.2f}"


def find_cause(row: Row, outcome: Outcome, run: Callable[[Row], Outcome]) -> Combination:
    """Return the values that cause a run's outcome: none can be set back to its default.

    Args:
        row: the run.
        outcome: how it ended.
        run: runs another row.
    """
    cause = {key: index for key, index in row.items() if index}
    defaults = dict.fromkeys(row, 0)
    group_size = max(len(cause) // 2, 1)
    while True:
        keys = list(cause)
        for start in range(0, len(keys), group_size):
            group = keys[start : start + group_size]
            others = {key: index for key, index in cause.items() if key not in group}
            if _category(run(defaults | others)) == _category(outcome):
                cause = others
        if group_size == 1:
            return frozenset(cause.items())
        group_size //= 2


def _category(outcome: Outcome) -> str:
    """Return what distinguishes outcomes: the first word of a refusal, the type of an error."""
    if outcome.result == "refused":
        return " ".join(outcome.message.split()[:1])
    last_line = outcome.message.strip().splitlines()[-1] if outcome.message else ""
    return f"{outcome.result} {last_line.split(':')[0]}"


def try_all(devices: int, folders: pathlib.Path, flags: argparse.Namespace) -> int:
    """Run rows until every pair is covered; return the number of findings."""
    pairs = Pairs(VALUES, is_valid, flags.seed)
    runner = Runner(devices, folders)
    num_runs = num_findings = 0
    impossible = pairs.impossible()
    for pair in impossible:
        print(f"refused before anything is read: {_describe(pairs, pair)}")
        pairs.uncovered.discard(pair)
    try:
        for row in pairs.rows():
            if flags.first and num_runs == flags.first:
                break
            num_runs += 1
            values = pairs.values(row)
            outcome = Outcome("trained", "not run", 0) if flags.list else runner.run(values)
            num_uncovered = len(pairs.uncovered)
            if outcome.result == "trained":
                pairs.cover(row)
                print(
                    f"{devices} devices, run {num_runs}: {outcome.message}, "
                    f"{outcome.seconds:.0f} s, {num_uncovered - len(pairs.uncovered)} new pairs, "
                    f"{len(pairs.uncovered)} to go",
                    flush=True,
                )
                if flags.list:
                    print(json.dumps(values))
                continue
            # Preparing a run is enough to search for the cause where that has the same outcome.
            prepare_only = _category(runner.run(values, prepare_only=True)) == _category(outcome)

            def run(row: Row, prepare_only: bool = prepare_only) -> Outcome:
                return runner.run(pairs.values(row), prepare_only=prepare_only)

            cause = find_cause(row, outcome, run)
            pairs.avoid(cause)
            last_line = outcome.message.strip().splitlines()[-1]
            print(
                f"{devices} devices, run {num_runs}: {outcome.result}, {_describe(pairs, cause)}: "
                f"{last_line}"
            )
            if outcome.result == "failed":
                num_findings += 1
                print(f"{outcome.message}\nthe whole run: {json.dumps(values)}", flush=True)
    finally:
        runner.close()
    print(
        f"{devices} devices: {pairs.total} pairs, {num_runs} runs, {len(impossible)} pairs refused "
        f"at once, {len(pairs.avoided)} combinations refused or failed, {num_findings} findings, "
        f"{len(pairs.uncovered)} pairs not covered"
    )
    return num_findings


def _describe(pairs: Pairs, combination: Combination) -> str:
    values = pairs.values(dict(sorted(combination)))
    return ", ".join(f"{key}={value!r}" for key, value in values.items())


def main(argv: Sequence[str] | None = None) -> int:
    """Run, or list, the rows as the flags say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 4], help="default: 1 4")
    parser.add_argument("--first", type=int, default=0, help="number of runs; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of runs")
    parser.add_argument("--list", action="store_true", help="list the runs without training")
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
