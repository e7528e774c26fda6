"""How many of a dataset's images are broken, and when they are too many."""

import logging
from collections.abc import Iterable, Sequence

from convit_jax.data.reading import Broken, Images
from convit_jax.errors import RunError

log = logging.getLogger(__name__)


class Health:
    """Counts the broken images that this process met, each once.

    Attributes:
        allowed: how many of all may be broken.
        met: the indices of those that were met, in that order.
    """

    def __init__(self, images: Images, max_broken: float, *, alone: bool = True) -> None:
        """Takes the images, the share of them that may be broken, and who checks it.

        `alone`: this process reads all that is read, and stops by itself. Otherwise several read,
        and whoever collects what they met (`training.broken_images`) calls `check`.
        """
        self._images, self._alone = images, alone
        self.allowed = int(len(images) * max_broken)
        self.met: dict[int, None] = {}

    def count(self, broken: Sequence[Broken]) -> None:
        """Notes and logs those that were not met before.

        Raises:
            RunError: they are more than allowed.
        """
        for image in broken:
            if image.index in self.met:
                continue
            self.met[image.index] = None
            problem = f"cannot read {image.name}: {image.reason}"
            if self._alone and len(self.met) > self.allowed:
                raise RunError(
                    f"{problem}; that is broken image number {len(self.met)} of "
                    f"{len(self._images)} and max_broken allows {self.allowed}"
                )
            log.warning("%s (%d of at most %d)", problem, len(self.met), self.allowed)

    def check(self, indices: Iterable[int]) -> None:
        """Judges what all processes met: the same everywhere, in the same words.

        Raises:
            RunError: they are more than allowed.
        """
        broken = sorted(set(indices))
        if len(broken) > self.allowed:
            named = ", ".join(self._images.describe(index) for index in broken[:3])
            more = ", …" if len(broken) > 3 else ""
            raise RunError(
                f"at least {len(broken)} of {len(self._images)} images are broken and max_broken "
                f"allows {self.allowed}: {named}{more}; the logs of the "
                "processes that read them say why"
            )
