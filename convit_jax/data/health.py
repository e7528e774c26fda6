"""Counting a dataset's broken images, and stopping when there are too many."""

import logging
from collections.abc import Iterable, Sequence

from convit_jax.data.reading import BrokenImage, Images
from convit_jax.errors import RunError

log = logging.getLogger(__name__)


class BrokenImageCounter:
    """Counts the broken images that this process encountered, each once.

    Attributes:
        allowed: how many of the images may be broken.
        indices: the indices of the broken images, in the order in which they were encountered.
    """

    def __init__(self, images: Images, max_broken: float, *, enforce: bool = True) -> None:
        """Start counting.

        Args:
            images: the dataset.
            max_broken: share of the images that may be broken.
            enforce: whether `add` raises when the limit is exceeded. False if several processes
                share the reading: then `distributed.broken_images` collects the indices of all
                processes and calls `check`.
        """
        self._images, self._enforce = images, enforce
        self.allowed = int(len(images) * max_broken)
        self.indices: dict[int, None] = {}

    def add(self, broken: Sequence[BrokenImage]) -> None:
        """Record and log the broken images that are new.

        Raises:
            RunError: there are more of them than allowed.
        """
        for image in broken:
            if image.index in self.indices:
                continue
            self.indices[image.index] = None
            problem = f"cannot read {image.name}: {image.reason}"
            if self._enforce and len(self.indices) > self.allowed:
                raise RunError(
                    f"{problem}; that is broken image number {len(self.indices)} of "
                    f"{len(self._images)} and max_broken allows {self.allowed}"
                )
            log.warning("%s (%d of at most %d)", problem, len(self.indices), self.allowed)

    def check(self, indices: Iterable[int]) -> None:
        """Check the indices that all processes encountered; every process gets the same message.

        Raises:
            RunError: there are more of them than allowed.
        """
        broken = sorted(set(indices))
        if len(broken) > self.allowed:
            names = ", ".join(self._images.describe(index) for index in broken[:3])
            ellipsis = ", …" if len(broken) > 3 else ""
            raise RunError(
                f"at least {len(broken)} of {len(self._images)} images are broken and max_broken "
                f"allows {self.allowed}: {names}{ellipsis}; the logs of the "
                "processes that read them say why"
            )
