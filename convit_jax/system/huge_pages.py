"""Memory in huge pages, for computing on a CPU under Linux.

XLA's CPU programs ask for their temporary memory anew at every step: gigabytes, which in ordinary
pages cost hundreds of thousands of page faults a step, a quarter of the time of a training step.
The C library takes huge pages when it is asked to before the process starts.
"""

import os
import sys

_SETTING = "glibc.malloc.hugetlb=1"


def restart_with_huge_pages() -> None:
    """Runs the program anew, as the same process, with huge pages asked for.

    Does nothing where they are asked for already, where GLIBC_TUNABLES says something else, or
    under other systems than Linux. To be called before anything is imported or done.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = _SETTING
        os.execv(sys.executable, sys.orig_argv)
