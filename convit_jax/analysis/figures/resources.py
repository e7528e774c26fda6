"""What a run takes of its machine, while it trains, evaluates and saves."""

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
    """Memory, shared memory, and what is counted, of a run and its workers together.

    Args:
        samples: by name: `step`, megabytes of memory and of shared memory, and counts.
    """
    figure = Figure(figsize=(style.PAGE, 2.4))
    # What is sampled at one step is drawn from it to the next, so that peaks keep their place.
    places = _spread(samples["step"])
    for axes, (unit, names) in zip(figure.subplots(1, len(_PANELS)), _PANELS.items(), strict=True):
        for number, (name, label) in enumerate(names.items()):
            colour = style.MODELS[number]
            axes.plot(places, samples[name], color=colour, label=label, linewidth=0.7)
        axes.set(xlabel="step", ylabel=unit, ylim=(0, 1.6 * max(samples[n].max() for n in names)))
        axes.legend(loc="upper left")
    return figure


def _spread(steps: np.ndarray) -> np.ndarray:
    """Places of samples that were taken one after the other while the last step told was one."""
    places = steps.astype(float)
    told = np.unique(steps)
    for one, other in itertools.pairwise(told):
        here = np.flatnonzero(steps == one)
        places[here] = one + (other - one) * np.arange(len(here)) / len(here)
    return places
