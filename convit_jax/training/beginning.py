"""What a run shows of itself before its first step: its config and its first images."""

import dataclasses
import json
from collections.abc import Sequence

import numpy as np
from clu import metric_writers

from convit_jax import data
from convit_jax.training.contact_sheet import augment_on_device, draw_grid, shares_in_words
from convit_jax.training.experiment import Experiment

_COLUMNS, _MAX_IMAGES = 4, 16
# Pixels of the longer side of each image.
_LARGEST = 128


def write_beginning(
    writer: metric_writers.MetricWriter,
    experiment: Experiment,
    batch: data.Batch,
    rows: Sequence[int],
    class_names: tuple[str, ...],
) -> None:
    """Write the config as text and the first images as the model sees them, at step 0.

    Args:
        writer: the writer of the run.
        experiment: the experiment.
        batch: this process's rows of the first batch.
        rows: their numbers in the global batch, ascending.
        class_names: the names of the labels.
    """
    text = json.dumps(dataclasses.asdict(experiment.config), indent=2)
    # TensorBoard shows Markdown, in which indented lines are left as they are.
    writer.write_texts(0, {"config": "\n".join(f"    {line}" for line in text.splitlines())})
    # Random draws belong to the first rows of the global batch.
    count = min(_MAX_IMAGES, int((np.asarray(rows) == np.arange(len(rows))).sum())) // 2 * 2
    if not count or experiment.architecture.in_channels not in (1, 3):
        return
    images, shares = augment_on_device(
        experiment, batch["image"][:count], batch["label"][:count], step=0
    )
    captions = [shares_in_words(row, class_names) for row in shares]
    sheet = draw_grid(images, captions, _COLUMNS, _LARGEST)
    writer.write_images(0, {"first images": np.asarray(sheet)})
