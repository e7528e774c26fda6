"""Peak memory of a worker process that reads data, measured in a separate process.

python -m convit_jax.benchmarks.worker_memory < PICKLED_READER_AND_ROWS
"""

import pathlib
import pickle
import re
import subprocess
import sys
from collections.abc import Sequence

import numpy as np

from convit_jax.data.reading import Row, RowReader
from convit_jax.data.workers import ROWS_PER_TASK

_STATUS = pathlib.Path("/proc/self/status")


def worker_memory(reader: RowReader, rows: Sequence[Row]) -> float | None:
    """Return the peak memory of a worker process in megabytes, or None if /proc lacks it."""
    completed = subprocess.run(
        [sys.executable, "-m", "convit_jax.benchmarks.worker_memory"],
        input=pickle.dumps((reader, rows[:ROWS_PER_TASK])),
        stdout=subprocess.PIPE,
        check=True,
    )
    return float(completed.stdout) if _STATUS.exists() else None


def main() -> None:
    """Read the rows and print the peak memory of this process."""
    reader, rows = pickle.load(sys.stdin.buffer)
    reader.read(rows, np.empty((len(rows), *reader.image_shape), np.uint8))
    peak = re.search(r"VmHWM:\s+(\d+)", _STATUS.read_text()) if _STATUS.exists() else None
    print(int(peak[1]) / 1e3 if peak else "nan")


if __name__ == "__main__":
    main()
