"""Resources of a run: memory, shared memory, threads, file descriptors and processes."""

import itertools
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from convit_jax.analysis.figures import style

_PANELS = {
    "MB": {"rss": "RSS", "pss": "PSS", "anonymous": "anonymous", "allocated": "allocated"},
    "MB of shared memory": {"shared": "mapped from /dev/shm"},
    "number": {"threads": "threads", "descriptors": "descriptors", "processes": "processes"},
}


@style.styled
def resources_over_steps(samples: Mapping[str, np.ndarray]) -> Figure:
    """Plot the resources of a run and its workers together by training step.

    Args:
        samples: one array for each column by name: `step`, memory and shared memory in MB, counts.
    """
    figure = Figure(figsize=(style.PAGE, 2.4))
    # Samples of one step are spread until the next step, so that all peaks are visible.
    x = _spread_samples(samples["step"])
    for axes, (unit, names) in zip(figure.subplots(1, len(_PANELS)), _PANELS.items(), strict=True):
        for index, (name, label) in enumerate(names.items()):
            colour = style.model_style(index)["color"]
            axes.plot(x, samples[name], color=colour, label=label, linewidth=0.7)
        axes.set(xlabel="step", ylabel=unit, ylim=(0, 1.6 * max(samples[n].max() for n in names)))
        axes.legend(loc="upper left")
    return figure


def _spread_samples(steps: np.ndarray) -> np.ndarray:
    """Return x of each sample: the samples of each logged step evenly up to the next step."""
    x = steps.astype(float)
    for step, next_step in itertools.pairwise(np.unique(steps)):
        indices = np.flatnonzero(steps == step)
        x[indices] = step + (next_step - step) * np.arange(len(indices)) / len(indices)
    return x
