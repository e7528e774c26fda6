"""How much memory reading takes: run in a process of its own, as a worker is.

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
    """Megabytes that a worker process takes at most, or None where Linux does not tell it."""
    done = subprocess.run(
        [sys.executable, "-m", "convit_jax.benchmarks.worker_memory"],
        input=pickle.dumps((reader, rows[:ROWS_PER_TASK])),
        stdout=subprocess.PIPE,
        check=True,
    )
    return float(done.stdout) if _STATUS.exists() else None


def main() -> None:
    """Reads the rows and prints the most memory that this process ever had."""
    reader, rows = pickle.load(sys.stdin.buffer)
    reader.read(rows, np.empty((len(rows), *reader.image_shape), np.uint8))
    peak = re.search(r"VmHWM:\s+(\d+)", _STATUS.read_text()) if _STATUS.exists() else None
    print(int(peak[1]) / 1e3 if peak else "nan")


if __name__ == "__main__":
    main()
