"""A bounded cache of open files, for datasets of very many files."""

import collections
import contextlib
import dataclasses
import resource
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

File = TypeVar("File")

# A dataset gets 1/4 of the files that a process may have open: a run reads two datasets at once,
# and its other files, sockets and libraries need some.
_SHARE = 4
_MIN_OPEN, _MAX_OPEN = 8, 4096


def max_open_files(num_files: int) -> int:
    """Return how many of `num_files` files to keep open, given the limit of this process.

    Raises the process's soft limit up to its hard limit if that helps, since opening an
    ArrayRecord file takes fifteen times as long as reading a record of an open one.
    """
    num_files = min(num_files, _MAX_OPEN)
    limit, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return num_files
    if limit < num_files * _SHARE:
        new_limit = num_files * _SHARE
        if hard_limit != resource.RLIM_INFINITY:
            new_limit = min(new_limit, hard_limit)
        # Some systems have a further limit and refuse to go beyond it.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(limit, new_limit), hard_limit))
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(min(num_files, limit // _SHARE), _MIN_OPEN)


@dataclasses.dataclass
class _Entry(Generic[File]):
    """An open file and how many threads are using it."""

    file: File
    num_users: int = 0


class OpenFiles(Generic[File]):
    """A thread-safe cache that keeps the most recently used files open."""

    def __init__(
        self, open_file: Callable[[str], File], close_file: Callable[[File], None], capacity: int
    ) -> None:
        """Set how to open and close a file, and how many to keep open."""
        self._open, self._close, self._capacity = open_file, close_file, capacity
        # By path, the least recently used first.
        self._entries: collections.OrderedDict[str, _Entry[File]] = collections.OrderedDict()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def use(self, path: str) -> Iterator[File]:
        """Yield the open file, which stays open at least until the context exits.

        If an error is raised inside the context, the file is closed and opened again next time:
        after reading damaged data, a reader may be unusable for anything else.
        """
        with self._lock:
            if path not in self._entries:
                self._make_room()
                self._entries[path] = _Entry(self._open(path))
            self._entries.move_to_end(path)
            entry = self._entries[path]
            entry.num_users += 1
        try:
            yield entry.file
        except Exception:
            with self._lock:
                entry.num_users -= 1
                if not entry.num_users and self._entries.get(path) is entry:
                    del self._entries[path]
                    self._close(entry.file)
            raise
        with self._lock:
            entry.num_users -= 1

    def _make_room(self) -> None:
        """Close the least recently used of the idle files until another one fits."""
        idle = [path for path, entry in self._entries.items() if not entry.num_users]
        for path in idle[: max(0, len(self._entries) - self._capacity + 1)]:
            self._close(self._entries.pop(path).file)
