"""Plan the paper's six ConViTs on three TPU slices and print the tables of docs/plans.md:

    python scripts/make_plan_table.py docs/plans.jsonl

A plan takes minutes; each is appended to the file at once, and plans that the file has are reused.
Configs are unchanged, except that `remat` is tried where a run does not fit a chip's memory. A
second table shows the effect of each memory-saving switch on one of the runs.
"""

import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

MODELS = ("ti", "ti_plus", "s", "s_plus", "b", "b_plus")
SLICES = ("v5e-8", "v4-128", "v5p-128")
REMAT = "config.model.remat=true"
SWITCHED = ("s", "v5e-8")
SWITCHES = ("", REMAT, "config.optimizer.accumulate=1", "config.mesh.fsdp=8")
HEADINGS = (
    "model", "slice", "images per chip", "GiB per chip", "step, ms", "images/s", "of the peak",
    "hours", "images/s per host",
)  # fmt: skip
SWITCH_HEADINGS = (
    "switch", "parameters, optimizer", "activations, temporaries", "batch, program", "in all",
    "step, ms",
)  # fmt: skip
GIB = 2**30


class PlanCache:
    """Plans cached in a file, one JSON object per line, and computed on the first request."""

    def __init__(self, path: pathlib.Path) -> None:
        """Reads the file, if it exists."""
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self._plans = {
            (plan["config"], plan["topology"], plan["switch"]): plan
            for plan in map(json.loads, lines)
        }

    def get(self, model: str, topology: str, switch: str = "") -> dict[str, Any]:
        """Return the plan of a config on a slice, with an additional flag."""
        key = (model, topology, switch)
        if key not in self._plans:
            plan = {"config": model, "switch": switch} | make_plan(*key)
            with self._path.open("a") as file:
                file.write(json.dumps(plan) + "\n")
            self._plans[key] = plan
        return self._plans[key]


def make_plan(model: str, topology: str, switch: str) -> dict[str, Any]:
    """Return the output of `python -m convit_jax.plan --json`.

    Raises:
        RuntimeError: the command failed for another reason than that the run does not fit.
    """
    command = [sys.executable, "-m", "convit_jax.plan", "--json", f"--topology={topology}"]
    command += [f"--config=configs/convit_{model}.py", *([f"--{switch}"] if switch else [])]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode not in (0, 1) or not result.stdout:
        raise RuntimeError(f"{' '.join(command)} exited with {result.returncode}: {result.stderr}")
    return json.loads(result.stdout)


def rows(plans: PlanCache) -> Iterator[tuple[str, ...]]:
    """Yield the memory and estimated speed of each model on each slice."""
    for topology in SLICES:
        for model in MODELS:
            plan = plans.get(model, topology)
            if not plan["fits"]:
                plan = plans.get(model, topology, REMAT)
            name = plan["model"] + (" (remat)" if plan["switch"] else "")
            if not plan["fits"]:
                yield name, topology, images_per_chip(plan), "does not fit", *[""] * 5
                continue
            yield (
                name,
                topology,
                images_per_chip(plan),
                f"{gib(plan['total_bytes'])} of {plan['hbm_bytes'] / GIB:.0f}",
                milliseconds(plan),
                f"{plan['images_per_second']:,.0f}",
                f"{100 * plan['mfu']:.0f} %",
                f"{plan['hours']:.1f}",
                f"{plan['images_per_second_per_host']:,.0f}",
            )


def switch_rows(plans: PlanCache) -> Iterator[tuple[str, ...]]:
    """Yield the memory by content, and the time per step, with each switch."""
    for switch in SWITCHES:
        plan = plans.get(*SWITCHED, switch)
        yield (
            f"`--{switch}`" if switch else "none",
            gib(plan["parameter_bytes"] + plan["optimizer_bytes"]),
            gib(plan["temporary_bytes"]),
            gib(plan["other_bytes"]),
            gib(plan["total_bytes"]),
            milliseconds(plan),
        )


def images_per_chip(plan: dict[str, Any]) -> str:
    """Format the images of a step on each chip, computed at once or in parts."""
    images, parts = plan["batch_per_chip"], plan["parts"]
    return f"{parts} x {images // parts}" if parts > 1 else str(images)


def gib(size: int) -> str:
    """Format bytes as GiB."""
    return f"{size / GIB:.2f}"


def milliseconds(plan: dict[str, Any]) -> str:
    """Format a step's estimated time."""
    return f"{1e3 * plan['batch_size'] / plan['images_per_second']:.1f}"


def table(headings: tuple[str, ...], num_texts: int, rows: Iterator[tuple[str, ...]]) -> str:
    """Format a Markdown table; its first `num_texts` columns are texts, the others numbers."""
    rule = "|---" * num_texts + "|---:" * (len(headings) - num_texts) + "|"
    return "\n".join([table_row(headings), rule, *map(table_row, rows)])


def table_row(cells: tuple[str, ...]) -> str:
    """Format a row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def main(path: pathlib.Path) -> None:
    """Compute the plans that the file lacks, and print the tables."""
    plans = PlanCache(path)
    print(table(HEADINGS, 2, rows(plans)), end="\n\n")
    print(table(SWITCH_HEADINGS, 1, switch_rows(plans)))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
