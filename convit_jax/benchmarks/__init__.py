"""What the benchmark command measures: one file for each of its subjects."""
