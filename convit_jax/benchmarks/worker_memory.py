"""Peak memory of a worker process that reads data, measured in a separate process.

python -m convit_jax.benchmarks.worker_memory < PICKLED_READER_AND_ROWS
"""

import math
import pathlib
import pickle
import re
import subprocess
import sys
from collections.abc import Sequence

import numpy as np

from convit_jax.data.reading import Row, RowReader
from convit_jax.data.workers import ROWS_PER_TASK
from convit_jax.system.freed_memory import keep_freed_memory


def worker_memory(reader: RowReader, rows: Sequence[Row]) -> float | None:
    """Return the peak memory of a worker process in megabytes, or None if /proc lacks it."""
    completed = subprocess.run(
        [sys.executable, "-m", "convit_jax.benchmarks.worker_memory"],
        input=pickle.dumps((reader, rows[:ROWS_PER_TASK])),
        stdout=subprocess.PIPE,
        check=True,
    )
    megabytes = float(completed.stdout)
    return None if math.isnan(megabytes) else megabytes


def memory_of_this_process(key: str) -> float:
    """Return megabytes: VmRSS, now, or VmHWM, at the peak; NaN if /proc lacks it."""
    status = pathlib.Path("/proc/self/status")
    match = re.search(rf"{key}:\s+(\d+)", status.read_text()) if status.exists() else None
    return int(match[1]) / 1e3 if match else math.nan


def main() -> None:
    """Read the rows and print the peak memory of this process."""
    keep_freed_memory()
    reader, rows = pickle.load(sys.stdin.buffer)
    reader.read(rows, np.empty((len(rows), *reader.image_shape), np.uint8))
    print(memory_of_this_process("VmHWM"))


if __name__ == "__main__":
    main()
