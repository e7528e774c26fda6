"""File names in one block of memory: a million Python strings take a hundred bytes each."""

import array
import dataclasses
import os
from collections.abc import Iterable

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class PackedNames:
    """A sequence of file names.

    Attributes:
        content: uint8, the names one after another, as the file system encodes them.
        ends: int64 [number of names], where each name ends in `content`.
    """

    content: np.ndarray
    ends: np.ndarray

    @classmethod
    def pack(cls, names: Iterable[str]) -> "PackedNames":
        """Pack names, which are consumed one by one."""
        content, ends = bytearray(), array.array("q")
        for name in names:
            content += os.fsencode(name)
            ends.append(len(content))
        return cls(np.frombuffer(content, np.uint8), np.frombuffer(ends, np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.content[start : self.ends[index]].tobytes())
