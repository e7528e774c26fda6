"""The subjects of the benchmark command, one file each."""
