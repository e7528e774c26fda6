"""What a command shows while it works: log lines, and a live progress line on a terminal."""

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

# Between progress lines where standard error is not a terminal.
SECONDS_BETWEEN_LINES = 30.0

log = logging.getLogger(__name__)


def duration_in_words(seconds: float) -> str:
    """Format a duration: 3725 → "1h02m", 65 → "1m05s"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"


class PipedConsole(Console):
    """A console whose broken pipe is an error for the command to report.

    Rich would exit with code 1 instead.
    """

    def on_broken_pipe(self) -> None:
        """Raise the BrokenPipeError again; Rich calls this while it handles it."""
        raise


def print_table(
    rows: Iterable[Sequence[str]],
    headings: Sequence[str] = (),
    *,
    title: str | None = None,
    right: Collection[str] = (),
    width: int | None = None,
) -> None:
    """Print a table on standard output.

    Args:
        rows: the cells of each row.
        headings: of the columns; none by default.
        title: of the table.
        right: the headings of the columns that are aligned to the right and never wrapped.
        width: in characters; None for that of the terminal, or 80 in files and pipes.
    """
    table = Table(box=box.SIMPLE, title=title, show_header=bool(headings))
    for heading in headings:
        is_right = heading in right
        table.add_column(heading, justify="right" if is_right else "left", no_wrap=is_right)
    for row in rows:
        table.add_row(*row)
    PipedConsole(width=width).print(table)


class _ConsoleHandler(logging.Handler):
    """Prints log records above the progress line."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        # A log that cannot be written, for a closed pipe or a full disk, does not end a run.
        with contextlib.suppress(OSError):
            self._console.print(self.format(record), markup=False)


class Screen:
    """Standard error: log lines, and below them a progress line on a terminal."""

    def __init__(
        self, only: str = "", other_levels: int = logging.WARNING, is_watched: bool = True
    ) -> None:
        """Create a screen that shows log lines once it is entered.

        Args:
            only: the module or package whose lines are all shown; by default everything.
            other_levels: the lowest level of the lines shown from other modules.
            is_watched: whether to show a progress line if standard error is a terminal.
        """
        console = PipedConsole(stderr=True, highlight=False, soft_wrap=True)
        self._handler = _ConsoleHandler(console)
        self._handler.addFilter(
            lambda record: record.name.startswith(only) or record.levelno >= other_levels
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
        """Whether there is a progress line."""
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
        """Return a function of (done, total) that shows the progress and the time left.

        Without a progress line it logs one every `SECONDS_BETWEEN_LINES`.
        """
        start = last_logged = time.monotonic()

        def progress(done: int, total: int) -> None:
            nonlocal last_logged
            now = time.monotonic()
            left = duration_in_words((now - start) / done * (total - done))
            self.show(description, done, total, f"{left} left")
            if not self.is_watched and done < total and now - last_logged > SECONDS_BETWEEN_LINES:
                last_logged = now
                log.info("%s: %d of %d batches, %s left", description, done, total, left)

        return progress

    def show(self, description: str, completed: int, total: int, note: str = "") -> None:
        """Set the progress line: what is running, how far it is, and a note."""
        if self._task is None:
            self._task = self._progress.add_task(description, total=total, note=note)
        self._progress.update(
            self._task, description=description, completed=completed, total=total, note=note
        )
