"""Chooses a learning rate (and a weight decay) for the digits, for each model alike:

    python scripts/choose_recipe.py OUT --learning-rates 1e-3,3e-3,1e-2 --weight-decays 0.05,0.1

Every setting is tried with every model by `convit_jax.study`, on the first 1,050 training images,
and measured on the 350 others: the test images are not looked at. A setting's score is the mean
accuracy over models and fractions, so that no model counts more than another; each model's own
best setting is told too. OUT gets a study for each setting and `choice.md`. The same command goes
on where it was stopped.
"""

import argparse
import csv
import itertools
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence

ROOT = pathlib.Path(__file__).parent.parent
TRAIN, HELD_OUT = "digits:train[:1050]", "digits:train[1050:]"

Setting = tuple[str, str]


def try_setting(out: pathlib.Path, setting: Setting, arguments: argparse.Namespace) -> pathlib.Path:
    """Trains all models with a learning rate and a weight decay; returns the study's directory.

    Raises:
        CalledProcessError: the study failed or was stopped.
    """
    rate, decay = setting
    directory = out / f"rate{rate}_decay{decay}"
    command = [
        *(sys.executable, "-m", "convit_jax.study", "--config=configs/digits.py"),
        *(f"--models={arguments.models}", f"--fractions={arguments.fractions}"),
        *(f"--seeds={arguments.seeds}", f"--out={directory.resolve()}"),
        *(f"--config.data.train={TRAIN}", f"--config.data.eval={HELD_OUT}"),
        *("--config.eval_batch_size=350", "--config.attention_images=0"),
        *(f"--config.optimizer.learning_rate={rate}", f"--config.optimizer.weight_decay={decay}"),
    ]
    subprocess.run(command, cwd=ROOT, check=True)
    return directory


def scores(directory: pathlib.Path) -> dict[str, float]:
    """Each model's mean accuracy over fractions and seeds, of the last evaluation."""
    found: dict[str, list[float]] = {}
    with (directory / "results.csv").open() as file:
        for row in csv.DictReader(file):
            found.setdefault(row["model"], []).append(float(row["top1"]))
    return {model: statistics.fmean(values) for model, values in found.items()}


def choice(found: Mapping[Setting, Mapping[str, float]]) -> str:
    """The settings as markdown, the best first, and which is best for all and for each."""
    ranked = sorted(found, key=lambda s: -statistics.fmean(found[s].values()))
    models = list(found[ranked[0]])
    lines = [
        f"| learning rate | weight decay | {' | '.join(models)} | mean |",
        "|" + " --- |" * (len(models) + 3),
    ]
    for setting in ranked:
        values = [*found[setting].values(), statistics.fmean(found[setting].values())]
        told = " | ".join(f"{100 * value:.2f}" for value in values)
        lines.append(f"| {setting[0]} | {setting[1]} | {told} |")
    best = {"all": ranked[0]}
    best |= {model: max(found, key=lambda s, m=model: found[s][m]) for model in models}
    lines.append("")
    lines += [f"best for {who}: rate {rate}, decay {decay}" for who, (rate, decay) in best.items()]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Tries every setting and writes `choice.md`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--learning-rates", default="1e-3,3e-3,1e-2")
    parser.add_argument("--weight-decays", default="0.1")
    parser.add_argument("--models", default="convit,deit")
    parser.add_argument("--fractions", default="0.1,1")
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args(argv)
    settings = itertools.product(
        arguments.learning_rates.split(","), arguments.weight_decays.split(",")
    )
    tried = {setting: try_setting(arguments.out, setting, arguments) for setting in settings}
    text = choice({setting: scores(directory) for setting, directory in tried.items()})
    (arguments.out / "choice.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
