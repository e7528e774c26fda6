"""Memory in huge pages, for computing on a CPU under Linux.

XLA's CPU programs allocate their temporary memory anew at every step: gigabytes, which in ordinary
pages cost hundreds of thousands of page faults, a quarter of the time of a training step. The C
library uses huge pages if an environment variable says so when the process starts.
"""

import os
import sys

_SETTING = "glibc.malloc.hugetlb=1"


def restart_with_huge_pages() -> None:
    """Restart the program, as the same process, with huge pages enabled.

    Does nothing if GLIBC_TUNABLES is set already, or on systems other than Linux. Call this before
    anything is imported or done.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = _SETTING
        os.execv(sys.executable, sys.orig_argv)
