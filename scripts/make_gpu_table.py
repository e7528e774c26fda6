"""Print the results of scripts/compare_on_gpu.sh as one table; the argument is its directory."""

import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

PLAIN = "plain attention, cuDNN"


def rows(directory: pathlib.Path) -> Iterator[tuple[str, ...]]:
    """Yield (model, what was measured, forward, with gradients) for each result."""
    for path in sorted(directory.glob("*-attention.jsonl")):
        yield from _layer_rows(_read(path))
    for path in sorted(directory.glob("*-model.jsonl")):
        for speed in _read(path):
            yield from _model_rows(speed, _read(path.with_name(f"{speed['model']}-plain.jsonl")))


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.startswith("{")]


def _layer_rows(times: Sequence[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    plain = {time["form"]: time for time in times}[PLAIN]
    for time in times:
        cells = (
            f"{1e3 * time[key]:.3f} ms ({time[key] / plain[key]:.2f})"
            for key in ("forward_seconds", "train_seconds")
        )
        yield time["model"], f"layer: {time['form']}", *cells


def _model_rows(ours: dict[str, Any], plain: Sequence[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    keys = ("forward", "train")
    gated = {key: ours[f"{key}_images_per_second"] for key in keys}
    yield ours["model"], "images/s", *(f"{gated[key]:,.0f}" for key in keys)
    for speed in plain:
        theirs = {key: speed[f"{key}_images_per_second"] for key in keys}
        cells = (f"{theirs[key]:,.0f} ({theirs[key] / gated[key]:.2f})" for key in keys)
        yield ours["model"], "plain attention (its images/s over ours)", *cells
    for mode in sorted({name.split()[0] for name in ours["timm"]}):
        theirs = {key: ours["timm"][f"{mode} {key}"] for key in keys}
        cells = (f"{theirs[key]:,.0f} ({gated[key] / theirs[key]:.2f})" for key in keys)
        yield ours["model"], f"timm, {mode} (ours over its)", *cells


def main(directory: str) -> None:
    """Print the table."""
    print("| model | what | forward | with gradients |\n|---|---|---|---|")
    for row in rows(pathlib.Path(directory)):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main(sys.argv[1])
