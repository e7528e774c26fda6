r"""Train models on fractions of the data and compare their accuracy (paper Table 2):

    python -m convit_jax.study --config configs/digits.py --models convit,deit \
        --fractions 0.05,0.1,0.3,0.5,1 --seeds 3 --out runs/study

Every cell (a model, a fraction, a seed) is an ordinary run in OUT/cells/NAME, which sees as many
images as a run on all the data. Finished cells are not trained again: the same command continues
where it was stopped, and more fractions, seeds, models or variants add cells. OUT gets results.csv,
table.md and figures. With --variants the cells are rows of the paper's Table 3 (a is the
unchanged ConViT), vanilla (positional attention without a gate, Fig. 9), or its DeiT initialised
otherwise (mimetic, impulse); with --locality-strengths and --gpsa-layers points of Fig. 8.

MODELS are names from convit_jax.list_models(), which replace config.model.name, or arguments of the
config file: above, configs/digits.py:convit and configs/digits.py:deit. --config.key=value changes
a key for all cells (see train.py --help).
"""

from convit_jax.system.huge_pages import restart_with_huge_pages

if __name__ == "__main__":
    restart_with_huge_pages()

import argparse
import dataclasses
import functools
import json
import math
import os
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from convit_jax.config import SEEDS, Config
from convit_jax.config.files import Overrides, make_config, split_argument
from convit_jax.console import command_line
from convit_jax.errors import InputError, nearest
from convit_jax.models import model_names
from convit_jax.studies import description, report
from convit_jax.studies.cells import Job, jobs_of_worker, list_cells, make_jobs
from convit_jax.studies.listing import list_jobs
from convit_jax.studies.progress import Pace
from convit_jax.studies.results import Result, read_result, read_results
from convit_jax.studies.running import run_jobs
from convit_jax.studies.variants import ROWS
from convit_jax.system.paths import expand_home

T = TypeVar("T")


def _parser() -> command_line.Parser:
    parser = command_line.Parser(prog="python -m convit_jax.study", description=__doc__)
    add = parser.add_argument
    add("--config", required=True, metavar="FILE", help="the experiment: configs/FILE.py")
    add("--fractions", required=True, metavar="F,F…", help="fractions of each class: 0.05,0.1,1")
    add("--models", required=True, metavar="M,M…", help="see above; gaps are of the first")
    parser.add_option("--seeds", 1, "number of seeds", metavar="N")
    add("--out", required=True, metavar="DIR", help="directory of the study")
    add("--variants", metavar="R,R…", help="rows of Table 3, see above")
    add("--locality-strengths", metavar="A,A…", help="α, 0.01,0.1,1 in Fig. 8a")
    add("--gpsa-layers", metavar="N,N…", help="numbers of GPSA layers, 0,3,6,9 in Fig. 8a")
    add("--worker", default="1/1", metavar="I/N", help="train the I-th of N parts of the cells")
    add("--dry-run", action="store_true", help="list the cells; train and write nothing")
    add("--images-per-second", type=float, metavar="R", help="for time estimates")
    add("--json", action="store_true", help="print one JSON object per cell")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 1 if a cell failed, 128 + N after signal N."""
    arguments, overrides = command_line.parse(_parser(), argv)
    command_line.expect(arguments, "seeds", arguments.seeds >= 1, "at least 1")
    rate = arguments.images_per_second
    command_line.expect(arguments, "images_per_second", rate is None or rate > 0, "above 0")
    out = expand_home(arguments.out, "--out")
    a = arguments
    fractions = _parse_list(a, "fractions", float, lambda f: 0 < f <= 1, "fractions such as 0.05,1")
    strengths = _parse_list(
        a, "locality_strengths", float, lambda s: 0 < s < math.inf, "numbers above 0"
    )
    layers = _parse_list(a, "gpsa_layers", int, lambda n: n >= 0, "whole numbers such as 0,3,6")
    expected = "rows of Table 3, a to g, vanilla, mimetic or impulse"
    rows = _parse_list(a, "variants", str, ROWS.__contains__, expected)
    names = _parse_list(a, "models", str, bool, "names such as convit_small,deit_small")
    worker, workers = _parse_worker(arguments)
    configs = {name: _model_config(name, arguments.config, overrides) for name in names}

    description.check_comparable(configs)
    for name, config in configs.items():
        last_seed = config.seed + arguments.seeds - 1
        expected = f"at most {SEEDS - config.seed} seeds from config.seed={config.seed} of '{name}'"
        command_line.expect(arguments, "seeds", last_seed < SEEDS, expected)
    cells = list_cells(configs, fractions, arguments.seeds, rows, strengths, layers)
    description.open_study(out, configs, write=False)
    jobs = make_jobs(configs, cells)
    own_jobs = jobs_of_worker(jobs, worker, workers)

    def workdir(job: Job) -> pathlib.Path:
        return description.cell_directory(out, job.cell.name)

    def results() -> list[Result]:
        return read_results(description.cell_directories(out))

    pace = Pace(results(), rate)
    if arguments.dry_run:
        for line in list_jobs(own_jobs, workdir, pace, as_json=arguments.json):
            print(line)
        return 0
    models = description.open_study(out, configs, write=True)

    outcome = run_jobs(
        own_jobs, workdir, pace, on_finished=lambda _: report.write_tables(out, results(), models)
    )
    table = report.write_tables(out, results(), models)
    figures = report.write_figures(out, results(), models)
    if arguments.json:
        for result in results():
            print(json.dumps(dataclasses.asdict(result)))
    else:
        print(table)
    for name, reason in outcome.failed.items():
        command_line.print_message("study", f"{name} failed: {reason}")
    figure_files = "".join(f", {name}.png and .svg" for name in figures)
    command_line.print_message("study", f"wrote results.csv, table.md{figure_files} to {out}")
    unfinished = sum(read_result(workdir(job)) is None for job in jobs)
    if unfinished:
        message = "cells are not finished; run the same command to continue"
        command_line.print_message("study", f"{unfinished} of {len(jobs)} {message}")
    if outcome.stopped_by is not None:
        return 128 + outcome.stopped_by
    return 1 if outcome.failed else 0


def _parse_list(
    arguments: argparse.Namespace,
    name: str,
    parse: Callable[[str], T],
    is_valid: Callable[[T], bool],
    expected: str,
) -> list[T]:
    """Return the values of a flag such as `--fractions 0.05,1`; none if it is not given.

    Raises:
        InputError: a value is invalid or given twice.
    """
    text = getattr(arguments, name)
    if text is None:
        return []
    try:
        values = [parse(part.strip()) for part in text.split(",")]
    except ValueError:
        values = []
    all_valid = bool(values) and all(map(is_valid, values))
    command_line.expect(arguments, name, all_valid, f"{expected}, separated by commas")
    command_line.expect(arguments, name, len(set(values)) == len(values), "each only once")
    return values


def _parse_worker(arguments: argparse.Namespace) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", arguments.worker)
    worker, workers = map(int, match.groups()) if match else (0, 0)
    is_valid = 1 <= worker <= workers
    command_line.expect(arguments, "worker", is_valid, "I/N with I from 1 to N, such as 2/3")
    return worker, workers


def _model_config(model: str, file: str, overrides: Overrides) -> Config:
    """Return the config of a model: of a zoo model in the file, or of the file's argument.

    Raises:
        InputError: the model is neither, or the config is wrong.
    """
    # The study sets the fraction, so keys that depend on it are not checked yet.
    make = functools.partial(make_config, undecided=("data.fraction",))
    if model in model_names():
        return make(file, [*overrides, ("model.name", model)])
    if split_argument(file)[1] is not None:
        raise InputError(
            f"--models: no model is called '{model}', {nearest(model, model_names())} (it cannot "
            f"be an argument of the config file, as {file} has one already)"
        )
    make(file, overrides)  # first report errors that do not depend on the argument
    try:
        return make(f"{file}:{model}", overrides)
    except InputError as error:
        raise InputError(
            f"--models: '{model}' is neither a model ({nearest(model, model_names())}) nor an "
            f"argument of {file} ({error})"
        ) from error


def _main_of_process() -> int:
    """Set up the process, then run the command."""
    # TensorFlow, which writes the event files, must not log its remarks on the CPU.
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "0"} | os.environ
    from convit_jax.system.cache import compiled_programs_shared  # noqa: PLC0415
    from convit_jax.training.checkpoints import silence_checkpoint_logging  # noqa: PLC0415

    silence_checkpoint_logging()
    with compiled_programs_shared():
        return main()


if __name__ == "__main__":
    sys.exit(command_line.run("study", _main_of_process))
