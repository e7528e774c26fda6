"""Choose a learning rate (and a weight decay) for the models of configs/digits.py or letters.py:

    python scripts/choose_recipe.py OUT --data digits --learning-rates 1e-3,3e-3,1e-2

Each setting is tried with each model by `convit_jax.study`, trained on the first three quarters of
the training images and evaluated on the others: the test images are not used. The score of a
setting is the mean accuracy over models and fractions, so that all models have the same weight; the
best setting of each model is also reported. OUT gets a study for each setting, and `choice.md` of
all settings that were ever tried there: where a model is best at an end of the grid, run it again
with --models and the next value. The same command continues where it was stopped; several may share
OUT. --config.key=value changes a key of all runs.
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
PART = "75%"

Setting = tuple[str, str]


def try_setting(out: pathlib.Path, setting: Setting, arguments: argparse.Namespace) -> int:
    """Train all models with a learning rate and a weight decay, as a study in a directory of `out`.

    Returns:
        The study's exit code; it has reported an error itself.
    """
    rate, decay = setting
    directory = out / f"rate{rate}_decay{decay}"
    command = [
        *(sys.executable, "-m", "convit_jax.study", f"--config=configs/{arguments.data}.py"),
        *(f"--models={arguments.models}", f"--fractions={arguments.fractions}"),
        *(f"--seeds={arguments.seeds}", f"--out={directory.resolve()}"),
        f"--config.data.train={arguments.data}:train[:{PART}]",
        f"--config.data.eval={arguments.data}:train[{PART}:]",
        "--config.attention_images=0",
        *(f"--config.optimizer.learning_rate={rate}", f"--config.optimizer.weight_decay={decay}"),
        *arguments.overrides,
    ]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def read_scores(directory: pathlib.Path) -> dict[str, float]:
    """Return each model's mean accuracy of the last evaluation over fractions and seeds.

    Models of which fewer runs are finished than of another are left out.
    """
    accuracies: dict[str, list[float]] = {}
    with (directory / "results.csv").open() as file:
        for row in csv.DictReader(file):
            accuracies.setdefault(row["model"], []).append(float(row["top1"]))
    runs = max(map(len, accuracies.values()), default=0)
    return {model: statistics.fmean(v) for model, v in accuracies.items() if len(v) == runs}


def choice(scores: Mapping[Setting, Mapping[str, float]]) -> str:
    """Return the settings as markdown, and the best setting for all and each model.

    Settings with all models are first, the best first; then those with some of the models.
    """
    models = list(dict.fromkeys(model for of_setting in scores.values() for model in of_setting))
    means = {
        setting: statistics.fmean(of_setting.values())
        for setting, of_setting in scores.items()
        if len(of_setting) == len(models)
    }
    ranked = sorted(means, key=lambda setting: -means[setting])
    lines = [
        f"| learning rate | weight decay | {' | '.join(models)} | mean |",
        "|" + " --- |" * (len(models) + 3),
    ]
    for setting in [*ranked, *(s for s in scores if s not in means)]:
        values = [scores[setting].get(model) for model in models] + [means.get(setting)]
        percents = " | ".join("" if value is None else f"{100 * value:.2f}" for value in values)
        lines.append(f"| {setting[0]} | {setting[1]} | {percents} |")
    best = {"all": ranked[0]} if ranked else {}
    for model in models:
        best[model] = max(scores, key=lambda s, m=model: scores[s].get(m, 0.0))
    lines.append("")
    lines += [
        f"best for {name}: rate {rate}, decay {decay}" for name, (rate, decay) in best.items()
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Try all settings and write `choice.md`; return the first study's exit code that is not 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--data", default="digits", choices=("digits", "letters"))
    parser.add_argument("--learning-rates", default="1e-3,3e-3,1e-2")
    parser.add_argument("--weight-decays", default="0.1")
    parser.add_argument("--models", default="convit,deit")
    parser.add_argument("--fractions", default="0.1,1")
    parser.add_argument("--seeds", type=int, default=1)
    arguments, arguments.overrides = parser.parse_known_args(argv)
    settings = itertools.product(
        arguments.learning_rates.split(","), arguments.weight_decays.split(",")
    )
    for setting in settings:
        exit_code = try_setting(arguments.out, setting, arguments)
        if exit_code:
            return exit_code
    scores = {}
    for directory in sorted(arguments.out.glob("rate*_decay*/")):
        rate, _, decay = directory.name.removeprefix("rate").partition("_decay")
        scores[rate, decay] = read_scores(directory)
    text = choice(scores)
    (arguments.out / "choice.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
