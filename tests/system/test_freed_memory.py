import sys

import pytest

PAGE_FAULTS = """
import resource, sys
import numpy as np
from convit_jax.system.freed_memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    start = faults()
    for _ in range(50):
        blocks = [np.ones(2**20, np.uint8) for _ in range(4)]
        del blocks
print(faults() - start)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc under Linux has the setting")
def test_memory_that_was_freed_gets_no_new_pages(run_python):
    """Of 200 MB allocated in blocks of 1 MB, which are 51,200 pages."""
    kept, returned = (int(run_python("-c", PAGE_FAULTS, how).stdout) for how in ("kept", "default"))
    assert kept < 500
    assert returned > 10 * kept
