"""What a command shows while it works: log lines, and a live line for the person who watches."""

import contextlib
import logging
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

# Between the lines of progress in a log that nobody watches.
SECONDS_BETWEEN_LINES = 30.0

log = logging.getLogger(__name__)


def duration_in_words(seconds: float) -> str:
    """3725 → "1h02m", 65 → "1m05s"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"


class PipedConsole(Console):
    """A console whose reader may go away: that is an error like any other's, told by the command.

    Rich itself would end the program, with code 1.
    """

    def on_broken_pipe(self) -> None:
        """Called where the error was caught."""
        raise


class _ConsoleHandler(logging.Handler):
    """Prints log records above the live line."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        # A log that nobody reads any more, or whose disk is full, is no reason to end a run.
        with contextlib.suppress(OSError):
            self._console.print(self.format(record), markup=False)


class Screen:
    """Standard error: log lines, and below them a live line where a person is watching."""

    def __init__(
        self, only: str = "", other_levels: int = logging.WARNING, is_watched: bool = True
    ) -> None:
        """Shows log lines, and the live line if standard error is a terminal.

        Args:
            only: the part of the package whose lines are shown; all by default.
            other_levels: from which level those of the other parts are shown, too.
            is_watched: whether somebody may be watching a live line.
        """
        console = PipedConsole(stderr=True, highlight=False, soft_wrap=True)
        self._handler = _ConsoleHandler(console)
        self._handler.addFilter(
            lambda line: line.name.startswith(only) or line.levelno >= other_levels
        )
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            disable=not (is_watched and console.is_terminal),
        )
        self._task: TaskID | None = None

    @property
    def is_watched(self) -> bool:
        """Whether there is a live line."""
        return not self._progress.disable

    def __enter__(self) -> "Screen":
        package = logging.getLogger("convit_jax")
        self._level = package.level
        package.addHandler(self._handler)
        package.setLevel(logging.INFO)
        package.propagate = False
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()
        package = logging.getLogger("convit_jax")
        package.removeHandler(self._handler)
        package.setLevel(self._level)
        package.propagate = True

    def counting(self, description: str) -> Callable[[int, int], None]:
        """A function of (done, total) that shows how far something is, and the time left.

        Where nobody watches a live line, it logs one from time to time.
        """
        began = told = time.monotonic()

        def progress(done: int, total: int) -> None:
            nonlocal told
            now = time.monotonic()
            left = duration_in_words((now - began) / done * (total - done))
            self.show(description, done, total, f"{left} left")
            if not self.is_watched and done < total and now - told > SECONDS_BETWEEN_LINES:
                told = now
                log.info("%s: %d of %d batches, %s left", description, done, total, left)

        return progress

    def show(self, description: str, completed: int, total: int, note: str = "") -> None:
        """Sets the live line: what is going on, how far it is, and a remark."""
        if self._task is None:
            self._task = self._progress.add_task(description, total=total, note=note)
        self._progress.update(
            self._task, description=description, completed=completed, total=total, note=note
        )
