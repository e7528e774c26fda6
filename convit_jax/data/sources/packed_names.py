"""File names in one block of memory: a million Python strings take a hundred bytes each."""

import dataclasses
import os
from collections.abc import Iterable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class PackedNames:
    """A sequence of file names.

    Attributes:
        content: uint8, the names as the file system encodes them, each followed by a zero.
        ends: int64 [number of names], where each name ends in `content`.
    """

    content: np.ndarray
    ends: np.ndarray

    @classmethod
    def pack(cls, groups: Iterable[tuple[str, Sequence[str]]]) -> "PackedNames":
        """Pack the names of several groups, (prefix, names without it), consumed one by one."""
        content, ends = bytearray(), [np.empty(0, np.int64)]
        for prefix, names in groups:
            if names:
                group = os.fsencode(prefix + f"\0{prefix}".join(names)) + b"\0"
                ends.append(np.flatnonzero(np.frombuffer(group, np.uint8) == 0) + len(content))
                content += group
        return cls(np.frombuffer(content, np.uint8), np.concatenate(ends))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = self.ends[index - 1] + 1 if index else 0
        return os.fsdecode(self.content[start : self.ends[index]].tobytes())
