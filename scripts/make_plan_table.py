"""Plans the paper's six ConViTs on five TPU slices and prints the tables of docs/plans.md:

    python scripts/make_plan_table.py docs/plans.jsonl

A plan takes minutes; each is added to the file as it is made, and those that are there are kept.
Every config is as it stands. Where it does not fit a chip's memory, `remat` is tried next. A second
table has what each switch that saves memory does for one of them.
"""

import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

MODELS = ("ti", "ti_plus", "s", "s_plus", "b", "b_plus")
SLICES = ("v5e-8", "v5e-256", "v4-128", "v5p-128", "v6e-256")
REMAT = "config.model.remat=true"
SWITCHED = ("s", "v5e-8")
SWITCHES = ("", REMAT, "config.optimizer.accumulate=2", "config.mesh.fsdp=8")
HEADINGS = (
    "model", "slice", "images a chip", "GiB a chip", "step, ms", "images/s", "of the peak",
    "hours", "images/s from each host",
)  # fmt: skip
SWITCH_HEADINGS = (
    "switch", "parameters, optimizer", "activations, temporaries", "batch, program", "in all",
    "step, ms",
)  # fmt: skip
GIB = 2**30


class Plans:
    """Plans kept in a file, a line each, and made when they are asked for first."""

    def __init__(self, path: pathlib.Path) -> None:
        """Reads the file, which need not be there."""
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self._made = {self._case(plan): plan for plan in map(json.loads, lines)}

    @staticmethod
    def _case(plan: dict[str, Any]) -> tuple[str, str, str]:
        return plan["config"], plan["topology"], plan["switch"]

    def find(self, model: str, topology: str, switch: str = "") -> dict[str, Any]:
        """The plan of a config, with a flag besides, on a slice."""
        case = (model, topology, switch)
        if case not in self._made:
            plan = {"config": model, "switch": switch} | make_plan(*case)
            with self._path.open("a") as file:
                file.write(json.dumps(plan) + "\n")
            self._made[case] = plan
        return self._made[case]


def make_plan(model: str, topology: str, switch: str) -> dict[str, Any]:
    """What `python -m convit_jax.plan --json` says.

    Raises:
        RuntimeError: it ended with neither a plan nor the word that the run does not fit.
    """
    command = [sys.executable, "-m", "convit_jax.plan", "--json", f"--topology={topology}"]
    command += [f"--config=configs/convit_{model}.py", *([f"--{switch}"] if switch else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1) or not done.stdout:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
    return json.loads(done.stdout)


def rows(plans: Plans) -> Iterator[tuple[str, ...]]:
    """Of each model on each slice: memory, and what the estimated time comes to."""
    for topology in SLICES:
        for model in MODELS:
            plan = plans.find(model, topology)
            if not plan["fits"]:
                plan = plans.find(model, topology, REMAT)
            name = plan["model"] + (" (remat)" if plan["switch"] else "")
            if not plan["fits"]:
                yield name, topology, str(plan["batch_per_chip"]), "does not fit", *[""] * 5
                continue
            yield (
                name,
                topology,
                str(plan["batch_per_chip"]),
                f"{gib(plan['total_bytes'])} of {plan['hbm_bytes'] / GIB:.0f}",
                milliseconds(plan),
                f"{plan['images_per_second']:,.0f}",
                f"{100 * plan['mfu']:.0f} %",
                f"{plan['hours']:.1f}",
                f"{plan['images_per_second_per_host']:,.0f}",
            )


def switch_rows(plans: Plans) -> Iterator[tuple[str, ...]]:
    """Of each switch: memory by what fills it, and the time it costs."""
    for switch in SWITCHES:
        plan = plans.find(*SWITCHED, switch)
        yield (
            f"`--{switch}`" if switch else "as it stands",
            gib(plan["parameter_bytes"] + plan["optimizer_bytes"]),
            gib(plan["temporary_bytes"]),
            gib(plan["other_bytes"]),
            gib(plan["total_bytes"]),
            milliseconds(plan),
        )


def gib(size: int) -> str:
    """Bytes as GiB."""
    return f"{size / GIB:.2f}"


def milliseconds(plan: dict[str, Any]) -> str:
    """A step's estimated time."""
    return f"{1e3 * plan['batch_size'] / plan['images_per_second']:.1f}"


def table(headings: tuple[str, ...], texts: int, lines: Iterator[tuple[str, ...]]) -> str:
    """A table in Markdown, whose first `texts` columns are words and the others numbers."""
    rule = "|---" * texts + "|---:" * (len(headings) - texts) + "|"
    return "\n".join([as_line(headings), rule, *map(as_line, lines)])


def as_line(cells: tuple[str, ...]) -> str:
    """A table's line in Markdown."""
    return f"| {' | '.join(cells)} |"


def main(path: pathlib.Path) -> None:
    """Makes the plans that the file does not have, then prints all."""
    plans = Plans(path)
    print(table(HEADINGS, 2, rows(plans)), end="\n\n")
    print(table(SWITCH_HEADINGS, 1, switch_rows(plans)))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
