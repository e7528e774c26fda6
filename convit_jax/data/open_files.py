"""A bounded number of open files, of the very many that a dataset may have."""

import collections
import contextlib
import resource
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

File = TypeVar("File")

# A dataset's part of the files that a process may have open: a run reads two at once, and its other
# files, sockets and libraries need some.
_SHARE = 4
_AT_LEAST, _AT_MOST = 8, 4096


def open_at_once(wanted: int) -> int:
    """How many of so many files to keep open, by what the system allows this process.

    It may raise its limit up to another one: that is done where it helps, since opening an
    ArrayRecord file takes fifteen times as long as reading a record of one that is open.
    """
    wanted = min(wanted, _AT_MOST)
    limit, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return wanted
    if limit < wanted * _SHARE:
        more = wanted * _SHARE
        if highest != resource.RLIM_INFINITY:
            more = min(more, highest)
        # Some systems refuse more than yet another limit.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(limit, more), highest))
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(min(wanted, limit // _SHARE), _AT_LEAST)


class OpenFiles(Generic[File]):
    """Files that were used last, kept open; for any number of threads."""

    def __init__(
        self,
        open_file: Callable[[str], File],
        close_file: Callable[[File], None],
        capacity: int,
    ) -> None:
        """Takes how to open and close a file, and how many to keep open."""
        self._open, self._close, self._capacity = open_file, close_file, capacity
        # In the order in which they were used last, each with the number of its users.
        self._files: collections.OrderedDict[str, tuple[File, list[None]]] = (
            collections.OrderedDict()
        )
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def use(self, path: str) -> Iterator[File]:
        """The open file, which stays open at least as long as it is used.

        One in whose use an error was raised is closed and opened again next time: a reader of
        damaged data need not be good for anything else.
        """
        with self._lock:
            if path not in self._files:
                self._make_room()
                self._files[path] = (self._open(path), [])
            self._files.move_to_end(path)
            file, users = self._files[path]
            users.append(None)
        try:
            yield file
        except Exception:
            with self._lock:
                users.pop()
                if not users and self._files.get(path, (None,))[0] is file:
                    del self._files[path]
                    self._close(file)
            raise
        with self._lock:
            users.pop()

    def _make_room(self) -> None:
        """Closes those that were not used for the longest."""
        idle = [path for path, (_, users) in self._files.items() if not users]
        for path in idle[: max(0, len(self._files) - self._capacity + 1)]:
            self._close(self._files.pop(path)[0])
