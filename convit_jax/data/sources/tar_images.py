"""Random access to the images in tar shards.

This module is cheap to import: worker processes receive `TarImages` and open the files themselves.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from convit_jax.data.open_files import OpenFiles, open_descriptors, read_range
from convit_jax.data.sources.packed_names import PackedNames

# Labels of samples that are reported as broken.
UNREADABLE, CONTRADICTORY = -(2**31), -(2**31) + 1
_REASONS = {
    UNREADABLE: "its .cls or .json has no integer of at most nine digits, or more than a megabyte",
    CONTRADICTORY: "its .cls and its .json have different labels",
}


@dataclasses.dataclass(frozen=True, eq=False)
class TarImages:
    """Labelled images in tar files.

    Attributes:
        shards: the paths of the files.
        shard_sizes: int64 [number of shards], in bytes.
        shard_ends: int64 [number of shards], the number of images up to the end of each.
        names: the images' paths in their shards.
        offsets, sizes: int64 [number of images], where an image is in its shard.
        labels: int32 [number of images]; `UNREADABLE` and `CONTRADICTORY` ones included.
    """

    shards: tuple[str, ...]
    shard_sizes: np.ndarray
    shard_ends: np.ndarray
    names: PackedNames
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray

    label_shape = ()

    def __len__(self) -> int:
        return len(self.labels)

    @functools.cached_property
    def _files(self) -> OpenFiles[int]:
        return open_descriptors(len(self.shards))

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        """Return the encoded image and its label.

        Raises:
            ValueError: it has no valid label, or the shard has become shorter.
        """
        label = int(self.labels[index])
        if label in _REASONS:
            raise ValueError(_REASONS[label])
        path, offset, size = self._shard(index), int(self.offsets[index]), int(self.sizes[index])
        content = read_range(self._files, path, offset, offset + size)
        if len(content) < size:
            missing = size - len(content)
            raise ValueError(f"the shard ends {missing} bytes before the end of the member")
        return content, label

    def identity(self) -> str:
        """Return a string that identifies these examples, wherever a host stores them."""
        sizes = map(int, self.shard_sizes)
        names = (path.rpartition("/")[2] for path in self.shards)
        return "\0".join(f"{name}:{size}" for name, size in zip(names, sizes, strict=True))

    def order_by_name(self) -> np.ndarray:
        """Return the indices in the order of the images' paths, then of the shards: int64."""
        names = self.names.content.tobytes().split(b"\0")
        by_name = sorted(range(len(self)), key=names.__getitem__)
        return np.asarray(by_name, np.int64)

    def describe(self, index: int) -> str:
        """Return the member and its shard, for messages."""
        return f"member {self.names[index]} of {self._shard(index)}"

    def _shard(self, index: int) -> str:
        return self.shards[int(np.searchsorted(self.shard_ends, index, side="right"))]

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields only: each process opens the files itself."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
