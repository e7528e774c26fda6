"""Plans the paper's six ConViTs on five TPU slices and prints the table of docs/plans.md:

    python scripts/make_plan_table.py docs/plans.jsonl

A plan takes minutes; each is added to the file as it is made, and those that are there are kept.
Every config is as it stands. Where it does not fit a chip's memory, `remat` is tried next.
"""

import json
import pathlib
import subprocess
import sys
from typing import Any

MODELS = ("ti", "ti_plus", "s", "s_plus", "b", "b_plus")
SLICES = ("v5e-8", "v5e-256", "v4-128", "v5p-128", "v6e-256")
GIB = 2**30


def make_plan(model: str, topology: str, *, remat: bool) -> dict[str, Any]:
    """What `python -m convit_jax.plan --json` says of a config on a slice.

    Raises:
        RuntimeError: it ended with neither a plan nor the word that the run does not fit.
    """
    command = [sys.executable, "-m", "convit_jax.plan", "--json", f"--topology={topology}"]
    command += [f"--config=configs/convit_{model}.py"]
    command += ["--config.model.remat=true"] * remat
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1) or not done.stdout:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
    return {"config": model, "remat": remat} | json.loads(done.stdout)


def row(plan: dict[str, Any]) -> str:
    """A line of the table."""
    milliseconds = 1e3 * plan["batch_size"] / plan["images_per_second"]
    cells = [
        plan["model"] + (" (remat)" if plan["remat"] else ""),
        plan["topology"],
        f"{plan['batch_per_chip']}",
        f"{plan['total_bytes'] / GIB:.2f} of {plan['hbm_bytes'] / GIB:.0f}",
        f"{milliseconds:.1f}",
        f"{plan['images_per_second']:,.0f}",
        f"{100 * plan['mfu']:.0f} %",
        f"{plan['hours']:.1f}",
        f"{plan['images_per_second_per_host']:,.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def main(path: pathlib.Path) -> None:
    """Makes the plans that the file does not have, then prints all."""
    plans = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {(plan["config"], plan["topology"], plan["remat"]): plan for plan in plans}
    for topology in SLICES:
        for model in MODELS:
            for remat in (False, True):
                case = (model, topology, remat)
                if case not in known:
                    known[case] = make_plan(model, topology, remat=remat)
                    with path.open("a") as file:
                        file.write(json.dumps(known[case]) + "\n")
                if known[case]["fits"]:
                    break
    headings = (
        "model", "slice", "images a chip", "GiB a chip", "step, ms", "images/s", "of the peak",
        "hours", "images/s from each host",
    )  # fmt: skip
    print(f"| {' | '.join(headings)} |\n|---|---|{'---:|' * (len(headings) - 2)}")
    for topology in SLICES:
        for model in MODELS:
            cases = [known.get((model, topology, remat)) for remat in (False, True)]
            fitting = [plan for plan in cases if plan and plan["fits"]]
            if fitting:
                print(row(fitting[0]))
            else:
                print(f"| convit_{model} | {topology} | {cases[0]['problem']} |")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
