"""Kills runs at random moments, resumes them until they finish, and compares the results.

    python scripts/kill_runs.py                              # every kind, all of its runs
    python scripts/kill_runs.py digits jpeg --runs 5 --seed 1
    python scripts/kill_runs.py two --only 3                 # repeat one of them

A run of forty steps of a tiny model, with a data worker process, is interrupted two or three times:
while it starts, compiles, trains, evaluates, saves or ends. Resumed, it must have the same result
as an uninterrupted run of its kind: state and moving average bit for bit, metrics.jsonl and
TensorBoard's events in every value except timings, with one value per step. It must resume from the
newest complete checkpoint, and leave no process and no shared memory behind. Anything else is a
finding: it is printed, kept in --keep with its logs, and makes the exit code 1.

The moments of the interruptions of run N follow from (seed, kind, N). What the run does at those
moments depends on the machine and is counted.
"""

import argparse
import collections
import concurrent.futures
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.faults.runs import PHASES  # noqa: E402  (needs the path above)
from tests.faults.trials import KINDS, Campaign, Outcome  # noqa: E402


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the flags ask for and print each result and a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = "; ".join(
        f"{name}: {kind.description} ({kind.num_runs} runs)" for name, kind in KINDS.items()
    )
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"one or more of {kinds}")
    parser.add_argument("--runs", type=int, help="number of runs of each kind (default: as listed)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="N", help="only run N of each kind")
    parser.add_argument("--jobs", type=int, default=1, help="number of parallel runs (default 1)")
    parser.add_argument(
        "--keep", type=pathlib.Path, default=pathlib.Path("kill_findings"), metavar="DIR",
        help="directory for runs with findings (default kill_findings)",
    )  # fmt: skip
    flags = parser.parse_args(argv)
    flags.kinds = flags.kinds or list(KINDS)
    unknown = [kind for kind in flags.kinds if kind not in KINDS]
    if unknown:
        parser.error(f"no kind {unknown[0]!r}: expected some of {', '.join(KINDS)}")
    start_time = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="convit-jax-killed-") as scratch:
        outcomes = _run_all(flags, pathlib.Path(scratch))
    _print_table(outcomes)
    num_failed = sum(bool(outcome.findings) for _, outcome in outcomes)
    minutes = (time.monotonic() - start_time) / 60
    print(f"{len(outcomes)} runs in {minutes:.0f} min, {num_failed} with a finding")
    return int(num_failed > 0)


def _run_all(flags: argparse.Namespace, scratch: pathlib.Path) -> list[tuple[str, Outcome]]:
    """Return (kind, outcome) of every run."""
    campaign, outcomes = Campaign(scratch, flags.seed), []
    runs = [
        (name, number)
        for name in flags.kinds
        for number in ([flags.only] if flags.only is not None else
                       range(flags.runs or KINDS[name].num_runs))
    ]  # fmt: skip
    with concurrent.futures.ThreadPoolExecutor(flags.jobs) as pool:
        for (name, number), outcome in zip(
            runs, pool.map(lambda run: campaign.run(*run), runs), strict=True
        ):
            moments = ", ".join(f"{name} in {phase}" for name, phase in outcome.interruptions)
            print(f"{name} {number}: {moments}: ", end="")
            print("; ".join(outcome.findings) or "identical", flush=True)
            if outcome.findings:
                flags.keep.mkdir(parents=True, exist_ok=True)
                target = flags.keep / f"{name}-{number}"
                shutil.rmtree(target, ignore_errors=True)
                shutil.move(outcome.directory, target)
            else:
                shutil.rmtree(outcome.directory)
            outcomes.append((name, outcome))
    return outcomes


def _print_table(outcomes: Iterable[tuple[str, Outcome]]) -> None:
    """Print a Markdown table of the runs, identical results and interruptions of each kind."""
    print(f"\n| runs | identical | interrupted | {' | '.join(PHASES)} |")
    print("|---" * (3 + len(PHASES)) + "|")
    by_kind = collections.defaultdict(list)
    for name, outcome in outcomes:
        by_kind[name].append(outcome)
    for name, group in by_kind.items():
        phases = collections.Counter(phase for o in group for _, phase in o.interruptions)
        cells = [f"{len(group)} {name}", sum(not outcome.findings for outcome in group)]
        cells += [phases.total(), *(phases[phase] for phase in PHASES)]
        print(f"| {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    sys.exit(main())
