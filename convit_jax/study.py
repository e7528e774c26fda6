r"""Trains models on ever less of the data, and says how each bears it (paper Table 2):

    python -m convit_jax.study --config configs/digits.py --models convit,deit \
        --fractions 0.05,0.1,0.3,0.5,1 --seeds 3 --out runs/study

Every cell (a model, a fraction, a seed) is an ordinary run, OUT/cells/NAME, that sees as many
images as one on all the data. Finished cells are never trained again: the same command goes on
where it was stopped, and more fractions, seeds, models or variants add to what is there. OUT gets
results.csv, table.md and figures. With --variants the cells are rows of the paper's Table 3, with
--locality-strengths and --gpsa-layers points of its Fig. 8a.

MODELS are names of convit_jax.list_models(), put into the config, or arguments of the config file:
above, configs/digits.py:convit and configs/digits.py:deit. --config.key=value changes a key of
all (train.py --help lists them).
"""

from convit_jax.system.huge_pages import restart_with_huge_pages

if __name__ == "__main__":
    restart_with_huge_pages()

import argparse
import dataclasses
import json
import math
import os
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from convit_jax.config import SEEDS, Config
from convit_jax.config.files import Overrides, make_config, split_argument, split_overrides
from convit_jax.console import command_line
from convit_jax.errors import InputError, nearest
from convit_jax.models import list_models
from convit_jax.studies import description, report
from convit_jax.studies.cells import Job, list_cells, make_jobs, share_of
from convit_jax.studies.listing import list_jobs
from convit_jax.studies.progress import Pace
from convit_jax.studies.results import Result, read_result, read_results
from convit_jax.studies.running import run_jobs
from convit_jax.studies.variants import TABLE_3
from convit_jax.system.paths import expand_home

T = TypeVar("T")


def _parser() -> command_line.Parser:
    parser = command_line.Parser(prog="python -m convit_jax.study", description=__doc__)
    add = parser.add_argument
    add("--config", required=True, metavar="FILE", help="the experiment: configs/FILE.py")
    add("--fractions", required=True, metavar="F,F…", help="shares of each class: 0.05,0.1,1")
    add("--models", required=True, metavar="M,M…", help="see above; gaps are the first's")
    add("--seeds", type=int, default=1, metavar="N", help="runs of each (default 1)")
    add("--out", required=True, metavar="DIR", help="the study's directory; is made")
    add("--variants", metavar="R,R…", help="rows of Table 3, a to g (a: the ConViT as it is)")
    add("--locality-strengths", metavar="A,A…", help="α, 0.01,0.1,1 in Fig. 8a")
    add("--gpsa-layers", metavar="N,N…", help="how many layers are GPSA, 0,3,6,9 in Fig. 8a")
    add("--worker", default="1/1", metavar="I/N", help="train the I-th of N shares of the cells")
    add("--dry-run", action="store_true", help="list the cells, train none, write nothing")
    add("--images-per-second", type=float, metavar="R", help="for estimates before cells tell")
    add("--json", action="store_true", help="print cells as JSON, one a line")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the flags say; returns 1 if a cell failed, 128 + N after signal N."""
    overrides, rest = split_overrides(sys.argv[1:] if argv is None else argv)
    arguments = _parser().parse_args(rest)
    command_line.expect(arguments, "seeds", arguments.seeds >= 1, "at least 1")
    rate = arguments.images_per_second
    command_line.expect(arguments, "images_per_second", rate is None or rate > 0, "above 0")
    out = expand_home(arguments.out, "--out")
    fractions = _list(arguments, "fractions", float, lambda f: 0 < f <= 1, "shares such as 0.05,1")
    strengths = _list(
        arguments, "locality_strengths", float, lambda a: 0 < a < math.inf, "numbers above 0"
    )
    layers = _list(arguments, "gpsa_layers", int, lambda n: n >= 0, "whole numbers such as 0,3,6")
    rows = _list(arguments, "variants", str, lambda r: r in TABLE_3, "rows of Table 3, a to g")
    names = _list(arguments, "models", str, bool, "names such as convit_small,deit_small")
    worker, workers = _worker(arguments)
    configs = {name: _config_of(name, arguments.config, overrides) for name in names}

    description.check_comparable(configs)
    for name, config in configs.items():
        last = config.seed + arguments.seeds - 1
        what = f"as many as there are from config.seed={config.seed} of '{name}', below {SEEDS}"
        command_line.expect(arguments, "seeds", last < SEEDS, what)
    cells = list_cells(configs, fractions, arguments.seeds, rows, strengths, layers)
    description.open_study(out, configs, write=False)
    jobs = make_jobs(configs, cells)
    share = share_of(jobs, worker, workers)

    def workdir(job: Job) -> pathlib.Path:
        return description.cell_directory(out, job.cell.name)

    def results() -> list[Result]:
        return read_results(description.cell_directories(out))

    pace = Pace(results(), rate)
    if arguments.dry_run:
        for line in list_jobs(share, workdir, pace, as_json=arguments.json):
            print(line)
        return 0
    together = description.open_study(out, configs, write=True)

    ending = run_jobs(
        share,
        workdir,
        pace,
        finished=lambda result: report.write_tables(out, results(), together),
    )
    table = report.write_tables(out, results(), together)
    drawn = report.write_figures(out, results(), together)
    if arguments.json:
        for result in results():
            print(json.dumps(dataclasses.asdict(result)))
    else:
        print(table)
    for name, reason in ending.failed.items():
        command_line.say("study", f"{name} failed: {reason}")
    figures = "".join(f", {name}.png and .svg" for name in drawn)
    command_line.say("study", f"{out} has results.csv, table.md{figures}")
    missing = sum(read_result(workdir(job)) is None for job in jobs)
    if missing:
        words = "cells are not finished; the same command goes on with them"
        command_line.say("study", f"{missing} of {len(jobs)} {words}")
    if ending.stopped_by is not None:
        return 128 + ending.stopped_by
    return 1 if ending.failed else 0


def _list(
    arguments: argparse.Namespace,
    name: str,
    kind: Callable[[str], T],
    holds: Callable[[T], bool],
    expected: str,
) -> list[T]:
    """What a flag such as `--fractions 0.05,1` says; nothing where it is not given.

    Raises:
        InputError: a part of it is of another kind, or there twice.
    """
    text = getattr(arguments, name)
    if text is None:
        return []
    try:
        values = [kind(part.strip()) for part in text.split(",")]
    except ValueError:
        values = []
    right = bool(values) and all(map(holds, values))
    command_line.expect(arguments, name, right, f"{expected}, with commas between them")
    command_line.expect(arguments, name, len(set(values)) == len(values), "each only once")
    return values


def _worker(arguments: argparse.Namespace) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", arguments.worker)
    worker, workers = map(int, match.groups()) if match else (0, 0)
    right = 1 <= worker <= workers
    command_line.expect(arguments, "worker", right, "I/N with I from 1 to N, such as 2/3")
    return worker, workers


def _make(file: str, overrides: Overrides) -> Config:
    """A config of which the study sets the fraction."""
    return make_config(file, overrides, undecided=("data.fraction",))


def _config_of(model: str, file: str, overrides: Overrides) -> Config:
    """The experiment of a model: the file's with the zoo's model, or the file's of that argument.

    Raises:
        InputError: it is neither, or the config is wrong.
    """
    if model in list_models():
        return _make(file, [*overrides, ("model.name", model)])
    if split_argument(file)[1] is not None:
        raise InputError(
            f"--models: no model is called '{model}', {nearest(model, list_models())} (it would be "
            f"an argument of the config, but {file} has one)"
        )
    _make(file, overrides)  # what is wrong without the argument is told first
    try:
        return _make(f"{file}:{model}", overrides)
    except InputError as error:
        raise InputError(
            f"--models: '{model}' is neither a model ({nearest(model, list_models())}) nor an "
            f"argument of {file} ({error})"
        ) from error


def _prepared_main() -> int:
    """`main` in a process of its own."""
    # TensorFlow, which writes the events, is to keep its remarks on the CPU to itself.
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "0"} | os.environ
    from convit_jax.system.cache import compiled_programs_shared  # noqa: PLC0415
    from convit_jax.training.checkpoints import silence_checkpoint_logging  # noqa: PLC0415

    silence_checkpoint_logging()
    with compiled_programs_shared():
        return main()


if __name__ == "__main__":
    sys.exit(command_line.run("study", _prepared_main))
