"""Kills runs at random moments, starts them again until they are done, and compares their ends.

    python scripts/kill_runs.py                              # every kind, all of its runs
    python scripts/kill_runs.py digits jpeg --runs 5 --seed 1
    python scripts/kill_runs.py two --only 3                 # one of them again

A run of forty steps of a tiny model, with a process that reads its data, is interrupted two or
three times: while it starts, compiles, trains, evaluates, saves or ends. Started again it must come
to the same as a run of its kind that was left alone: state and running average bit for bit,
metrics.jsonl and TensorBoard's events in every value but timings, one value a step. It must go on
from the newest checkpoint that is whole, and leave no process and no shared memory behind. Anything
else is a finding: it is told, kept in --keep with its logs, and makes the exit code 1.

The moments that run N of a kind is interrupted at follow from (seed, kind, N); what it does just
then is up to the machine, and counted.
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

from tests.faults.runs import PHASES  # noqa: E402  (the checkout comes first)
from tests.faults.trials import KINDS, Campaign, Outcome, forget  # noqa: E402


def main(argv: Sequence[str] | None = None) -> int:
    """Makes the runs that the flags ask for and prints what came of each, and a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = "; ".join(f"{name}: {kind.about} ({kind.runs} runs)" for name, kind in KINDS.items())
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {kinds}")
    parser.add_argument("--runs", type=int, help="of each kind (default: as many as it says)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="N", help="run N of each kind alone")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default 1)")
    parser.add_argument(
        "--keep", type=pathlib.Path, default=pathlib.Path("kill_findings"), metavar="DIR",
        help="where runs are kept that something is wrong with (default kill_findings)",
    )  # fmt: skip
    flags = parser.parse_args(argv)
    flags.kinds = flags.kinds or list(KINDS)
    unknown = [kind for kind in flags.kinds if kind not in KINDS]
    if unknown:
        parser.error(f"no kind {unknown[0]!r}: expected some of {', '.join(KINDS)}")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="convit-jax-killed-") as scratch:
        outcomes = _make(flags, pathlib.Path(scratch))
    _print_table(outcomes)
    wrong = sum(bool(outcome.complaints) for _, outcome in outcomes)
    minutes = (time.monotonic() - began) / 60
    print(f"{len(outcomes)} runs in {minutes:.0f} min, {wrong} with a finding")
    return int(wrong > 0)


def _make(flags: argparse.Namespace, scratch: pathlib.Path) -> list[tuple[str, Outcome]]:
    """(kind, outcome) of every run."""
    campaign, done = Campaign(scratch, flags.seed), []
    wanted = [
        (name, number)
        for name in flags.kinds
        for number in ([flags.only] if flags.only is not None else
                       range(flags.runs or KINDS[name].runs))
    ]  # fmt: skip
    with concurrent.futures.ThreadPoolExecutor(flags.jobs) as pool:
        for (name, number), outcome in zip(
            wanted, pool.map(lambda one: campaign.run(*one), wanted), strict=True
        ):
            moments = ", ".join(f"{how} in {phase}" for how, phase in outcome.interrupted)
            print(f"{name} {number}: {moments}: ", end="")
            print("; ".join(outcome.complaints) or "identical", flush=True)
            if outcome.complaints:
                flags.keep.mkdir(parents=True, exist_ok=True)
                kept = flags.keep / f"{name}-{number}"
                shutil.rmtree(kept, ignore_errors=True)
                shutil.move(outcome.directory, kept)
            else:
                forget(outcome)
            done.append((name, outcome))
    return done


def _print_table(outcomes: Iterable[tuple[str, Outcome]]) -> None:
    """In Markdown: of each kind, how many runs, how many identical, and when interrupted."""
    print(f"\n| runs | identical | interrupted | {' | '.join(PHASES)} |")
    print("|---" * (3 + len(PHASES)) + "|")
    by_kind = collections.defaultdict(list)
    for name, outcome in outcomes:
        by_kind[name].append(outcome)
    for name, those in by_kind.items():
        phases = collections.Counter(phase for o in those for _, phase in o.interrupted)
        cells = [f"{len(those)} {name}", sum(not outcome.complaints for outcome in those)]
        cells += [phases.total(), *(phases[phase] for phase in PHASES)]
        print(f"| {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    sys.exit(main())
