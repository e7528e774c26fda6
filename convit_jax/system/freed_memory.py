"""Memory that a process has freed, kept for its next images.

The C library returns large blocks to the system as soon as they are freed. The next image's arrays
then get pages that the system clears one by one, which can take longer than computing with them.
"""

import ctypes
import sys

# From glibc's malloc.h. Larger blocks are always returned; glibc allows no higher threshold.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 32 * 2**20


def keep_freed_memory() -> None:
    """Let this process keep up to 32 MB that it has freed; only under Linux with glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for threshold in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
            mallopt(threshold, _KEPT_BYTES)
